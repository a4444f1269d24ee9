"""Rows of Parquet and Arrow files as mappings, in batches of bounded size and only of the columns that are asked for.

pyarrow is imported when the first such file is opened. This file knows nothing of what a row should hold.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmr1.errors import ConfigurationError
from mmr1.reading.json_rows import Malformed

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_BYTES = 2**24  # of a batch in memory, as far as the file says how long a row is
_BATCH_ROWS = 1024
_BUFFER_BYTES = 2**20
_REST = "rows after it were not read"


def parquet_rows(path: Path, columns: Mapping[str, str], optional: str) -> Iterator[tuple[int, Any]]:
    """(row from 1, mapping) of a Parquet file. A row that cannot be read comes as Malformed.

    Args:
        columns: what must be there: a column's name to the option that names it.
        optional: a column that may be there too.

    Raises:
        ConfigurationError: the file is not whole, or a column is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _named(path, "Parquet"), pa.OSFile(str(path)) as source:
        # Without these a whole row group, which may be a million rows, is read ahead.
        file = pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        names = _columns(path, file.schema_arrow.names, columns, optional)
        num_bytes = sum(file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups))
        rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES * file.metadata.num_rows // max(1, num_bytes)))
        yield from _rows(file.iter_batches(rows, columns=names, use_threads=False), names)


def arrow_rows(path: Path, columns: Mapping[str, str], optional: str) -> Iterator[tuple[int, Any]]:
    """The same of an Arrow file or stream, in the batches that it was written in."""
    import pyarrow as pa

    with _named(path, "Arrow"), pa.OSFile(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
            schema = file.schema
        else:
            source.seek(0)
            batches = stream = pa.ipc.open_stream(source)
            schema = stream.schema
        names = _columns(path, schema.names, columns, optional)
        yield from _rows((batch.select(names) for batch in batches), names)


def _rows(batches: Iterator[pa.RecordBatch], names: list[str]) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    number = 0
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield number + 1, Malformed(f"cannot be read ({_first_line(error)}); {_REST}")
            return
        if batch is None:
            return
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row in _mappings(batch.slice(start, _BATCH_ROWS), names):
                number += 1
                yield number, row


def _mappings(batch: pa.RecordBatch, names: list[str]) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # a cell that Python has no value for: a text that is not UTF-8, a date too far
        for index in range(batch.num_rows):
            yield _mapping(batch, names, index)


def _mapping(batch: pa.RecordBatch, names: list[str], index: int) -> Any:
    row = {}
    for name in names:
        try:
            row[name] = batch.column(name)[index].as_py()
        except (ValueError, OverflowError) as error:
            reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error})"
            return Malformed(f"key {name!r} {reason}")
    return row


def _columns(path: Path, there: list[str], wanted: Mapping[str, str], optional: str) -> list[str]:
    lacking = [name for name in wanted if name not in there]
    if lacking:
        name = lacking[0]
        near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? set {wanted[name]}" if near else f"it has {there}; set {wanted[name]}"
        more = f" (and {', '.join(lacking[1:])})" if lacking[1:] else ""
        raise ConfigurationError(f"{path}: column {name!r} is missing{more}; {hint}")
    return [name for name in there if name in wanted or name == optional]


@contextmanager
def _named(path: Path, format_: str) -> Iterator[None]:
    """What pyarrow says of a file that is none, with its path."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: is not a whole {format_} file ({_first_line(error)}); restore it") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


__all__ = ["arrow_rows", "parquet_rows"]
