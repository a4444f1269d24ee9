"""What published rewards read with `eval` and open-ended patterns, read here in linear time; and every preset's params.

The results are those that the originals get from their own inputs. Numbers, lists of numbers, the text between two
marks, JSON of bounded depth, the boxes of solutions. It knows no reward.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, JsonValue, WithJsonSchema

from ...boxes import MAX_COORDINATE
from ...registry import Params

Box = tuple[float, float, float, float]

# No published answer nests deeper than a list of objects with lists; json.loads itself recurses.
MAX_JSON_DEPTH: Final = 16

_NUMBER = re.compile(r"[+-]?+[0-9.]++(?:[eE][+-]?+[0-9]++)?+")
_BRACKET_OR_STRING = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*+"?+', re.DOTALL)
_BLANKS = " \t\n\r\f"  # what Python's own grammar skips within brackets


class PresetParams(Params):
    """Params of every preset."""

    bug_compatible: bool = Field(
        False, description="the published value where the original has a bug (see the summary); the right one otherwise"
    )


def between(text: str, opening: str, closing: str) -> Iterator[str]:
    """What stands between each `opening` and the next `closing`, left to right, without overlap."""
    begin = text.find(opening)
    while begin >= 0:
        begin += len(opening)
        end = text.find(closing, begin)
        if end < 0:
            return
        yield text[begin:end]
        begin = text.find(opening, end + len(closing))


def between_on_one_line(text: str, opening: str, closing: str) -> Iterator[str]:
    """As `between`, with both marks on the same line: what a pattern means whose point does not match a newline."""
    for line in text.split("\n"):
        yield from between(line, opening, closing)


def read_literal(text: str) -> float | None:
    """The value of a text that is one number of Python's grammar, else None. `1e999` is infinite, as it is there.

    Signs, decimals and exponents are read; 007 and integers too large for a float are not, as Python refuses them.
    """
    if not _NUMBER.fullmatch(text):
        return None
    digits = text.lstrip("+-")
    try:
        value = float(text)
    except ValueError:  # several points, or nothing but points
        return None
    if digits.isdigit() and (math.isinf(value) or (digits[0] == "0" and value != 0)):
        return None
    return value


def read_list(text: str, brackets: str = "[]") -> list[float] | None:
    """The numbers of a text that is one list of numbers, such as `[1, 2.5, "3"]`; None for any other text.

    `brackets` holds pairs of an opening and its closing one. Quoted numbers and a last comma are read too.
    """
    text = text.strip()
    place = brackets.find(text[0]) if text else -1
    if place < 0 or place % 2 or len(text) < 2 or text[-1] != brackets[place + 1]:
        return None
    parts = text[1:-1].split(",")
    if not parts[-1].strip(_BLANKS):
        parts.pop()
    numbers = [_read_part(part.strip(_BLANKS)) for part in parts]
    found = [number for number in numbers if number is not None]
    return found if len(found) == len(numbers) else None


def read_true_json(solution: object, example: str) -> Any:
    """A solution that may come as its JSON text. Raises ValueError, in words for the dataset's author."""
    if not isinstance(solution, str):
        return solution
    try:
        return read_json(solution)
    except json.JSONDecodeError:
        raise ValueError(f"a text must be JSON, such as {example}") from None


def read_json(text: str) -> JsonValue:
    """The value of a JSON text. Raises ValueError when it is none, or nests deeper than MAX_JSON_DEPTH."""
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group(), 0)
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")
    value: JsonValue = json.loads(text)
    return value


def as_coordinates(value: JsonValue) -> list[float] | None:
    """The numbers of a JSON list of numbers; None for anything else. Infinite and NaN are numbers here."""
    if not isinstance(value, list):
        return None
    numbers = [_as_float(number) for number in value if isinstance(number, int | float)]
    return numbers if len(numbers) == len(value) else None


def as_true_box(numbers: list[float] | None) -> Box:
    """A solution's box. Raises ValueError, in words for the dataset's author, unless it is one with an area."""
    if numbers is None or len(numbers) != 4 or not all(math.fabs(number) <= MAX_COORDINATE for number in numbers):
        raise ValueError("must hold four numbers, such as [10, 20, 110, 220]")
    left, top, right, bottom = numbers
    if left >= right or top >= bottom:
        raise ValueError("must hold a box: x1 < x2 and y1 < y2")
    return left, top, right, bottom


def or_as_text(schema: dict[str, Any]) -> WithJsonSchema:
    """The JSON schema of a solution that may also come as its JSON text."""
    return WithJsonSchema({"anyOf": [schema, {"type": "string", "description": "the same as JSON text"}]})


def _read_part(part: str) -> float | None:
    quoted = len(part) > 2 and part[0] == part[-1] and part[0] in "'\""
    return read_literal(part[1:-1] if quoted else part)


def _as_float(number: float) -> float:
    """Also of an integer beyond every float."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _read_box_text(solution: object) -> Box:
    if isinstance(solution, list | tuple):
        return as_true_box(as_coordinates(list(solution)))
    return as_true_box(read_list(solution, "[]()") if isinstance(solution, str) else None)


BoxText = Annotated[
    Box,
    BeforeValidator(_read_box_text),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "description": "'[x1, y1, x2, y2]' as the dataset holds it, or with parentheses"},
                {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
            ]
        }
    ),
]
