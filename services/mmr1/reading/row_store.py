"""Good rows set down in a temporary file: any of them is found at once, and none is in memory.

A dataset is read through once, whatever its format, and from then on it is this: one JSON text for each row, and an
entry of fixed size that says where it begins, where the row came from and which task it is of. Both files have no name
and are gone with the process; they are in TMPDIR. What the dataset's own files become meanwhile changes nothing.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mmr1.errors import ConfigurationError

MOST_TASKS = 1000
_ENTRY = np.dtype([("offset", "<u8"), ("number", "<u4"), ("file", "<u4"), ("task", "<u4")])
_PACKED = struct.Struct("<QIII")
_CHUNK = 1024  # rows read at once


class RowStore:
    """Append rows, `seal`, then read. Threads may read at once."""

    def __init__(self) -> None:
        self._rows = tempfile.TemporaryFile(buffering=2**18)  # noqa: SIM115
        self._entries = tempfile.TemporaryFile(buffering=2**16)  # noqa: SIM115
        weakref.finalize(self, _close, self._rows, self._entries)
        self._length = 0
        self._end = 0
        self._task_numbers: dict[str, int] = {}

    def append(self, row: list[Any], *, task: str, file: int, number: int) -> None:
        """`row`: anything that JSON can hold. `file` and `number` are kept for `place`.

        Raises:
            ConfigurationError: the disk is full, or there are more tasks than there can be.
        """
        content = json.dumps(row).encode()
        task_number = self._task_numbers.setdefault(task, len(self._task_numbers))
        if task_number >= MOST_TASKS:
            raise ConfigurationError(f"the dataset has more than {MOST_TASKS} tasks; 'task' names how a row is scored")
        self._write(content, _PACKED.pack(self._end, number, file, task_number))
        self._end += len(content)
        self._length += 1

    def seal(self) -> None:
        """No more rows: what was appended can be read. Raises ConfigurationError as `append` does."""
        self._write(b"", _PACKED.pack(self._end, 0, 0, 0))
        try:
            self._rows.flush()
            self._entries.flush()
        except OSError as error:
            raise _no_room(error) from None

    def __len__(self) -> int:
        return self._length

    @property
    def tasks(self) -> list[str]:
        return list(self._task_numbers)

    def content(self, index: int) -> bytes:
        """A row as it is set down: the text of `json.dumps`."""
        begin, end = self._read_entries(index, index + 2)["offset"].tolist()
        return os.pread(self._rows.fileno(), end - begin, begin)

    def contents(self, start: int, stop: int) -> Iterator[bytes]:
        """The rows of [start, stop) as they are set down, read many at once."""
        for first in range(start, stop, _CHUNK):
            offsets = self._read_entries(first, min(first + _CHUNK, stop) + 1)["offset"].tolist()
            content = os.pread(self._rows.fileno(), offsets[-1] - offsets[0], offsets[0])
            for begin, end in pairwise(offsets):
                yield content[begin - offsets[0] : end - offsets[0]]

    def place(self, index: int) -> tuple[int, int]:
        """The row's (file, number) as they were given."""
        entry = self._read_entries(index, index + 1)[0]
        return int(entry["file"]), int(entry["number"])

    def task_numbers(self, start: int, stop: int) -> Iterator[int]:
        """Of the rows of [start, stop), as indices into `tasks`."""
        for first in range(start, stop, _CHUNK):
            yield from self._read_entries(first, min(first + _CHUNK, stop))["task"].tolist()

    def _read_entries(self, start: int, stop: int) -> npt.NDArray[Any]:
        """[stop - start] with the fields of _ENTRY."""
        size = _ENTRY.itemsize
        return np.frombuffer(os.pread(self._entries.fileno(), (stop - start) * size, start * size), _ENTRY)

    def _write(self, content: bytes, entry: bytes) -> None:
        try:
            self._rows.write(content)
            self._entries.write(entry)
        except OSError as error:
            raise _no_room(error) from None


def _close(*files: IO[bytes]) -> None:
    for file in files:
        with suppress(OSError):  # what is left to write has no room, and is of no use to anybody
            file.close()


def _no_room(error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the dataset's rows are set down in {tempfile.gettempdir()}, which fails ({error.strerror}); free some of "
        "it, or set TMPDIR to a folder with room"
    )


__all__ = ["MOST_TASKS", "RowStore"]
