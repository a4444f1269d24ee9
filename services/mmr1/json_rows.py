"""Rows of a JSON array or of JSON Lines, each with the line it begins on.

The standard decoder gives an array as one value without saying where an element stood; here elements are decoded one
by one. This file knows nothing of what a row should hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mmr1.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands for a row that is not JSON, and says why."""

    reason: str


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of each row of a JSON array or of JSON Lines; lines count from 1.

    A row that is not JSON comes as Malformed; in an array it is the last one, in JSON Lines the others still follow.

    Raises:
        ConfigurationError: the file cannot be read or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"dataset {path}: {error.strerror}; give a JSON array or JSON Lines file") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}:{line}: is not UTF-8; save the file as UTF-8") from None
    return _array_rows(text) if text.lstrip().startswith("[") else _json_lines(text)


def _json_lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                yield number, Malformed(f"is not JSON ({_explain(error)}); JSON Lines hold one object a line")


def _array_rows(text: str) -> Iterator[tuple[int, Any]]:
    """Decode element by element, counting lines on the way. A syntax error ends the file: what follows has no rows."""
    at = counted = _skip_space(text, text.index("[") + 1)
    line = text.count("\n", 0, at) + 1
    if text[at : at + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            where = error.lineno if isinstance(error, json.JSONDecodeError) else line
            yield where, Malformed(f"is not JSON ({_explain(error)}); rows after it were not read")
            return
        yield line, value
        at = _skip_space(text, end)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
            continue
        rest = text[_skip_space(text, at + 1) :] if text[at : at + 1] == "]" else None
        if rest != "":
            line += text.count("\n", counted, at)
            found = (
                "something after the closing ']'"
                if rest
                else repr(text[at])
                if at < len(text)
                else "the end of the file"
            )
            yield line, Malformed(f"is not JSON (expected ',' or ']' after a row, found {found})")
        return


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _explain(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


__all__ = ["Malformed", "json_rows"]
