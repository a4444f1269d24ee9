"""Reads files of annotations, and keeps account of what is wrong in them and what was left out, by reason.

An annotation is bad when it contradicts its format or its image: it is named by file and key, and what it belongs to is
left out. What is left out on purpose is only counted. This file knows no format.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmr1.errors import ConfigurationError
from mmr1.reading.json_rows import Malformed, json_rows
from mmr1.resizing import Size

T = TypeVar("T")
Row = dict[str, Any]  # {problem, solution, image, task}; the image as the annotations name it

_PICKLES = (".p", ".pkl", ".pickle")
_OVERHANG = 1.0  # pixels: published boxes are rounded, and end a little beyond their image
_DIGITS = 2  # of a pixel, as COCO's own


class BadAnnotation(Exception):
    """What is wrong, with the key where it stands: `annotations[12].bbox`."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")


class LeftOut(Exception):
    """Something right that is not converted; the reason is what is counted."""


@dataclass
class Account:
    """Of one file's conversion. `tell` is called with a line for each bad annotation, as it is found."""

    path: Path
    tell: Callable[[str], None]
    num_bad: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def bad(self, error: BadAnnotation) -> None:
        self.num_bad += 1
        self.tell(f"{self.path}: {error}")

    def each(
        self, rows: Iterable[tuple[str, Any]], convert: Callable[[Mapping[str, Any], str], list[T]]
    ) -> Iterator[T]:
        """What `convert` makes of each (key, row): nothing of a row that is badly annotated or left out."""
        for key, value in rows:
            try:
                yield from convert(mapping(value, key), key)
            except BadAnnotation as error:
                self.bad(error)
                self.left_out["it is badly annotated"] += 1
            except LeftOut as reason:
                self.left_out[str(reason)] += 1


def read_json(path: Path, form: str) -> Any:
    """A whole JSON document. `form` is what an error says the file should be.

    Raises:
        ConfigurationError: it cannot be read, is a pickle, or is not JSON.
    """
    _refuse_pickle(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; give {form}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not JSON ({' '.join(str(error).split())}); give {form}") from None


def rows_of(path: Path, form: str) -> Iterator[tuple[str, Any]]:
    """(key, row) of each row of a JSON array, of JSON Lines or of a Parquet file; the key is `line n` or `row n`.

    What is no JSON comes as Malformed, of which `mapping` says why.

    Raises:
        ConfigurationError: as `read_json`, or Parquet cannot be read here.
    """
    _refuse_pickle(path)
    if not path.is_file():
        raise ConfigurationError(f"{path} is not there; give {form}")
    if path.suffix == ".parquet":
        yield from ((f"row {number}", row) for number, row in enumerate(_parquet(path), start=1))
        return
    for line, row in json_rows(path):
        yield f"line {line}", row


def mapping(value: Any, key: str) -> Mapping[str, Any]:
    """An object of JSON. Raises BadAnnotation."""
    if isinstance(value, Malformed):
        raise BadAnnotation(key, value.reason)
    if not isinstance(value, dict):
        raise BadAnnotation(key, f"is {_shown(value)}, not an object")
    return value


def member(row: Mapping[str, Any], name: str, key: str, kind: type | tuple[type, ...], words: str) -> Any:
    """`row[name]` of a type (a bool is no number). Raises BadAnnotation: it is missing or of another."""
    if name not in row:
        raise BadAnnotation(f"{key}.{name}", "is missing")
    value = row[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise BadAnnotation(f"{key}.{name}", f"is {_shown(value)}, not {words}")
    return value


def text(row: Mapping[str, Any], name: str, key: str) -> str:
    """A text that is not blank, and that can be written. Raises BadAnnotation."""
    value: str = member(row, name, key, str, "a text")
    if not value.strip():
        raise BadAnnotation(f"{key}.{name}", "is empty")
    if not is_unicode(value):
        raise BadAnnotation(f"{key}.{name}", "holds half a character (a lone surrogate)")
    return value


def box(row: Mapping[str, Any], name: str, key: str, size: Size, *, is_xywh: bool) -> list[float]:
    """A box [x1, y1, x2, y2] within an image of `size`, from one, or from COCO's [x, y, width, height].

    Raises:
        BadAnnotation: it is not four numbers, is empty, or reaches more than a pixel beyond the image.
    """
    value = member(row, name, key, list, "a box of four numbers")
    key = f"{key}.{name}"
    if len(value) != 4 or not all(_is_number(number) for number in value):
        raise BadAnnotation(key, f"is {_shown(value)}, not a box of four numbers")
    x1, y1, x2, y2 = value
    if is_xywh:
        x2, y2 = x1 + x2, y1 + y2
    width, height = size
    if not (x1 < x2 and y1 < y2):
        form = "[x, y, width, height]" if is_xywh else "[x1, y1, x2, y2]"
        raise BadAnnotation(key, f"is {_shown(value)}, which as {form} has no area")
    if min(x1, y1) < -_OVERHANG or x2 > width + _OVERHANG or y2 > height + _OVERHANG:
        raise BadAnnotation(key, f"is {_shown(value)}, which reaches beyond its image of {width} x {height} pixels")
    # Rounded first: what is written is what has to have an area.
    inside = [round(number, _DIGITS) for number in (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))]
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        reason = f"of which nothing is left in its image of {width} x {height} pixels, to {_DIGITS} digits"
        raise BadAnnotation(key, f"is {_shown(value)}, {reason}")
    return inside


def is_unicode(value: str) -> bool:
    """JSON can write half of a character, and names of files are bytes: neither can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_pickle(path: Path) -> None:
    """By its name, or by how pickles of the newer and of the oldest protocol begin."""
    try:
        with path.open("rb") as file:
            start = file.read(3)
    except OSError:
        start = b""  # said by whoever opens it
    if path.suffix in _PICKLES or start[:1] == b"\x80" or start == b"(lp":
        target = path.with_suffix(".json").name
        raise ConfigurationError(
            f"{path} is a pickle, which can run any program, and nothing is unpickled here; where you trust it: "
            f"""python -c "import json, pickle; json.dump(pickle.load(open('{path.name}', 'rb'), encoding='latin1'), """
            f"""open('{target}', 'w'))", and give {target}"""
        )


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa  # slow, and of no use to the other formats
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ConfigurationError(f"{path} is not a whole Parquet file ({str(error).splitlines()[0]})") from None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


__all__ = [
    "Account",
    "BadAnnotation",
    "LeftOut",
    "Row",
    "box",
    "is_unicode",
    "mapping",
    "member",
    "read_json",
    "rows_of",
    "text",
]
