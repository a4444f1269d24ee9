"""From a row of any format to a problem's parts, or to what is wrong with the row, by key and with the remedy.

This file opens no image: paths come out relative to the image root, embedded images as their bytes.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmr1.images import ImageError, ImageStore
from mmr1.reading.arrow_rows import arrow_rows, parquet_rows
from mmr1.reading.files import DataFile, data_files
from mmr1.reading.json_rows import Malformed, json_rows
from mmr1.remote_images import RemoteRoot

_TASK = "task"
# A relative path without a part that is empty, "." or "..": it is what it would be made.
_PLAIN = re.compile(r"(?!\.{0,2}(?:/|\Z))[^/\0]+(?:/(?!\.{0,2}(?:/|\Z))[^/\0]+)*")


@dataclass(frozen=True, slots=True)
class Keys:
    """Under which keys a row holds what; `task` is for rows without a `task` of their own."""

    problem: str = "problem"
    answer: str = "solution"
    image: str = "image"
    task: str = "counting"


@dataclass(frozen=True, slots=True)
class BadRow:
    """What is wrong with one row, with the remedy; `number` is its line in a text, its row in a table, from 1."""

    file: DataFile
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file.place(self.number)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Row:
    """A good row. `images` are paths relative to the image root, or the bytes of an embedded image.

    `names_task`: the task is the row's own word, and not what is taken for rows without one.
    """

    file: DataFile
    number: int
    problem: str
    solution: Any
    images: tuple[str | bytes, ...]
    task: str
    names_task: bool


def read_rows(path: Path, *, root: Path | RemoteRoot, keys: Keys, folder: Path | None = None) -> Iterator[Row | BadRow]:
    """Every row of a dataset, in order; opens no image.

    Args:
        path: a file, a Hugging Face folder, or a split in one.
        root: no image may lie outside it.
        folder: where relative image paths begin; default: root.

    Raises:
        ConfigurationError: a file itself cannot be read, or a table lacks a column.
    """
    names = _Names(ImageStore(root), folder.absolute() if folder else None)
    for file in data_files(path):
        for number, row in _values(file, keys):
            try:
                if isinstance(row, Malformed):
                    raise _RowError(row.reason)
                text, solution, images, task = _parts(row, keys)
                named = tuple(image if isinstance(image, bytes) else names.relative(image) for image in images)
                yield Row(file, number, text, solution, named, task, row.get(_TASK) is not None)
            except RecursionError:
                yield BadRow(file, number, f"key {keys.answer!r} is nested too deeply")
            except (_RowError, ImageError) as error:
                reason = f"key {keys.image!r}: {error}" if isinstance(error, ImageError) else str(error)
                yield BadRow(file, number, reason)


class _RowError(Exception):
    pass


def _values(file: DataFile, keys: Keys) -> Iterator[tuple[int, Any]]:
    columns = {keys.problem: "problem_key", keys.answer: "answer_key", keys.image: "image_key"}
    match file.format:
        case "json":
            return json_rows(file.path)
        case "parquet":
            return parquet_rows(file.path, columns, _TASK)
        case "arrow":
            return arrow_rows(file.path, columns, _TASK)


class _Names:
    """A row's image paths, which begin at a folder, as paths relative to the image root."""

    def __init__(self, store: ImageStore, start: Path | None) -> None:
        self._store = store
        self._start = start
        self._prefix: str | None = ""
        if start:
            try:
                self._prefix = f"{store.relative(start)}/".removeprefix("./")
            except ImageError:  # for each row to say
                self._prefix = None

    def relative(self, image: str) -> str:
        """Raises ImageError: it lies outside the root by its own wording."""
        if self._prefix is not None and _PLAIN.fullmatch(image):  # the others cost a hundred times as much
            return self._prefix + image
        # A URL is for the store to refuse: joined to a folder it would be none.
        return self._store.relative(self._start / image if self._start and "://" not in image else image)


def _parts(row: Any, keys: Keys) -> tuple[str, Any, list[str | bytes], str]:
    if not isinstance(row, dict):
        raise _RowError(f"a row must be an object with {keys.problem!r}, {keys.answer!r} and {keys.image!r}")
    text = _value(row, keys.problem, "problem_key")
    if not isinstance(text, str) or not text.strip() or not _is_unicode(text):
        raise _RowError(f"key {keys.problem!r} must be a text that is not empty")
    solution = _value(row, keys.answer, "answer_key")
    if solution is None or solution == "":
        raise _RowError(f"key {keys.answer!r} is empty; give the right answer or remove the row")
    if (wrong := _no_json(solution)) is not None:
        raise _RowError(f"key {keys.answer!r} holds {wrong}; a solution is made of numbers, texts, lists and mappings")
    given = _value(row, keys.image, "image_key")
    images = [_image(image) for image in (given if isinstance(given, list) else [given])]
    if not images or None in images:
        raise _RowError(f"key {keys.image!r} must be an image path, an embedded image, or a list of them")
    task = row.get(_TASK)
    task = keys.task if task is None else task  # a table has the column for all rows or for none
    if not isinstance(task, str) or not task.strip() or not _is_unicode(task):
        raise _RowError("key 'task' must be a task's name; leave it out for the run's own task")
    return text, solution, [image for image in images if image is not None], task


def _image(value: Any) -> str | bytes | None:
    """A path, or bytes: alone, or as Hugging Face's Image feature has them, {bytes, path}. None: neither."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, bytes) and value:
        return value
    return value if isinstance(value, str) and value.strip() and _is_unicode(value) else None


def _no_json(value: Any) -> str | None:
    """What in a solution could not be written as JSON; None: nothing."""
    if isinstance(value, int) or value is None:
        return None
    if isinstance(value, str):
        return None if _is_unicode(value) else "half a character"
    if isinstance(value, float):
        return None if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return next((wrong for item in value if (wrong := _no_json(item))), None)
    if isinstance(value, dict):
        return _no_json([*value, *value.values()])
    return f"a {type(value).__name__}"


def _is_unicode(text: str) -> bool:
    """JSON can write half of a character (a lone surrogate), which no message could carry."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _value(row: dict[str, Any], key: str, option: str) -> Any:
    if key in row:
        return row[key]
    near = difflib.get_close_matches(key, row, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]!r}? set {option}" if near else f"the row has {sorted(row)}; set {option}"
    raise _RowError(f"key {key!r} is missing; {remedy}")


__all__ = ["BadRow", "Keys", "Row", "read_rows"]
