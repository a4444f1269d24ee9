"""Rows of a JSON array or of JSON Lines, each with the line it begins on; only a piece of the file is in memory.

The standard decoder gives an array as one value without saying where an element stood; here elements are decoded one
by one, from a window that moves over the file. This file knows nothing of what a row should hold.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from mmr1.errors import ConfigurationError

LONGEST_ROW_BYTES = 2**26
_WINDOW_BYTES = 2**18
_NOT_UTF8 = "is not UTF-8; save the file as UTF-8"
# How far before the end of what was read a decoder may stop only because the rest is not read yet.
_UNFINISHED_CHARS = 16


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands for a row that cannot be read, and says why."""

    reason: str


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of each row of a JSON array or of JSON Lines; lines count from 1.

    A row that is not JSON comes as Malformed; in an array it is the last one, in JSON Lines the others still follow.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            window = _Window(file)
            is_array = window.skip_space() == "["
            file.seek(0)
            yield from _array_rows(_Window(file)) if is_array else _json_lines(file)
    except OSError as error:
        raise ConfigurationError(f"dataset {path}: {error.strerror}; give a file that can be read") from None


def _json_lines(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)
    number = 0
    while content := file.readline(LONGEST_ROW_BYTES + 1):
        number += 1
        if len(content) > LONGEST_ROW_BYTES:
            yield number, Malformed(f"is longer than {LONGEST_ROW_BYTES} bytes; rows after it were not read")
            return
        if not content.isspace():
            try:
                yield number, _DECODER.decode(content.rstrip(b"\r\n").decode())
            except UnicodeDecodeError:
                yield number, Malformed(_NOT_UTF8)
            except (ValueError, RecursionError) as error:
                yield number, Malformed(f"is not JSON ({_explain(error)}); JSON Lines hold one object a line")


def _array_rows(window: _Window) -> Iterator[tuple[int, Any]]:
    """Decode element by element. A syntax error ends the file: what follows has no rows."""
    window.skip_space()
    window.at += 1
    if window.skip_space() == "]":
        return
    while True:
        line = window.line
        try:
            value = window.decode()
        except _BrokenError as error:
            yield error.line, Malformed(error.reason)
            return
        yield line, value
        found, line = window.skip_space(), window.line
        if found == ",":
            window.at += 1
            window.skip_space()
            continue
        if found == "]":
            window.at += 1
            wrong = "something after the closing ']'" if window.skip_space() else ""
        else:
            wrong = repr(found) if found else "the end of the file"
        if window.is_not_utf8:
            yield window.line, Malformed(_NOT_UTF8)
        elif wrong:
            yield line, Malformed(f"is not JSON (expected ',' or ']' after a row, found {wrong})")
        return


class _BrokenError(Exception):
    """An array cannot be read on."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class _Window:
    """A piece of a text, from the place that is being read on. `line` is the one that `at` is on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._column = 0  # characters of the first line that the window has left behind
        self._ended = False
        self.is_not_utf8 = False  # and the text ends where that begins
        self.at = 0
        self.line = 1

    def skip_space(self) -> str:
        """Move to what is no blank, and return that character; "" at the end of the file."""
        while True:
            start = self.at
            while self.at < len(self._text) and self._text[self.at] in " \t\r\n":
                self.at += 1
            self.line += self._text.count("\n", start, self.at)
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more():
                return ""

    def decode(self) -> Any:
        """The value that begins here, and move behind it.

        Raises:
            _BrokenError: it is not JSON, or not UTF-8.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.at)
            except (ValueError, RecursionError) as error:
                if self._may_go_on(error) and self._more():
                    continue
                raise self._broken(error) from None
            if end > len(self._text) - _UNFINISHED_CHARS and self._more():  # a number may go on
                continue
            self.line += self._text.count("\n", self.at, end)
            self.at = end
            return value

    def _may_go_on(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        is_open = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _UNFINISHED_CHARS
        return is_open and len(self._text) - self.at < LONGEST_ROW_BYTES

    def _broken(self, error: Exception) -> _BrokenError:
        line, explained = self.line, _explain(error)
        if self.is_not_utf8:
            return _BrokenError(line + self._text.count("\n", self.at), _NOT_UTF8)
        if isinstance(error, json.JSONDecodeError):
            line += self._text.count("\n", self.at, error.pos)
            column = error.colno + (self._column if error.lineno == 1 else 0)
            explained = f"{error.msg}, column {column}"
        return _BrokenError(line, f"is not JSON ({explained}); rows after it were not read")

    def _more(self) -> bool:
        """Leave behind what was read, and read on: as much again as is still there. False at the end of the text."""
        if self._ended:
            return False
        left = self._text[: self.at]
        self._column = len(left) - left.rfind("\n") - 1 + ("\n" not in left) * self._column
        self._text, self.at = self._text[self.at :], 0
        content = self._file.read(max(_WINDOW_BYTES, len(self._text)))
        try:
            self._text += self._decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            self._text += bytes(error.object[: error.start]).decode()
            self.is_not_utf8 = True
        self._ended = self.is_not_utf8 or not content
        return True


def _explain(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


__all__ = ["Malformed", "json_rows"]
