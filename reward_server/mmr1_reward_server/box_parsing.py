"""Reading boxes and points out of a model's text: one pass, linear time, no exception but InvalidOutput.

Read are, anywhere in the text and in any mixture:

- objects with a list under one of BOX_KEYS or POINT_KEYS, a text under LABEL_KEYS and a number under SCORE_KEYS, as in
  `[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}]`: JSON in or out of fences, also with single quotes or bare keys. A list
  of lists gives one region each. Under another key a list is not a region. With a box and a point, the box counts;
- bare lists and tuples of four numbers (a box) or two (a point), also in lists: `[1, 2, 3, 4]`, `[[1, 2, 3, 4]]`;
- two tuples with a comma between, `(1, 2),(3, 4)`: a box, or two points where the caller says so;
- `<|box_start|>(1,2),(3,4)<|box_end|>`, always a box, with the label of the last
  `<|object_ref_start|>dog<|object_ref_end|>` before it.

Numbers are integers, decimals, negative, with exponents, in ASCII or full-width digits; with more than MAX_DIGITS whole
digits they are none. Order is x, y. Duplicates stay: each is a region.

A text that was cut off gives its complete regions: those whose bracket is closed, and for an object its brace.
`Reading.cut` tells. Nothing is repaired.

Which space the numbers are in, and what a region is worth, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from .parsing import MAX_DIGITS
from .registry import InvalidOutput

MAX_REGIONS = 1000
MAX_DEPTH = 32
BOX_KEYS = frozenset(("bbox_2d", "bbox", "box", "bboxes", "boxes", "bounding_box"))
POINT_KEYS = frozenset(("point_2d", "point", "points"))
LABEL_KEYS = frozenset(("label", "name", "category", "class"))
SCORE_KEYS = frozenset(("score", "confidence"))

_MAX_NUMBER_CHARS = 40
_TOO_LARGE = 10.0**MAX_DIGITS
# One character for one character, so that a position in the translated text is one in the original, whose labels
# stay as they are.
_TO_ASCII = str.maketrans("０１２３４５６７８９，．－−＋（）［］｛｝：", "0123456789,.--+()[]{}:")  # noqa: RUF001

# All repetitions are possessive: what has been matched is never tried in another way.
_N = r"([-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+)\s*+"
_GROUP = re.compile(rf"[\[(]\s*+{_N},\s*+{_N}(?:,\s*+{_N}(?:,\s*+{_N})?+)?+,?+\s*+[\])]")
# What nearly every object looks like, in one step. The general way reads the same out of it, in seven.
_PLAIN_OBJECT = re.compile(
    rf'\{{\s*+"(\w++)"\s*+:\s*+\[\s*+{_N},\s*+{_N},\s*+{_N},\s*+{_N}\]\s*+,'
    r'\s*+"(\w++)"\s*+:\s*+"([^"\\\n]*+)"\s*+\}'
)
_NUMBER = re.compile(rf"\s*+{_N}(?=[,}}])")
_EMPTY_LIST = re.compile(r"\[\s*+\]")
_STRING = re.compile(r"""\s*+(?:"([^"\\\n]*+(?:\\.[^"\\\n]*+)*+)"?+|'([^'\\\n]*+(?:\\.[^'\\\n]*+)*+)'?+)""")
_MARK = r"<\|(?:object_ref_start|object_ref_end|box_start|box_end)\|>"
_OUTSIDE = re.compile(rf"[\[({{]|{_MARK}")
_INSIDE = re.compile(rf"[\[({{\]}},:]|{_MARK}")
_NONE = frozenset(("none", "null"))


@dataclass(frozen=True, slots=True)
class Region:
    """A box (x1, y1, x2, y2) or a point (x, y), in the numbers that the text has."""

    coordinates: tuple[float, ...]
    label: str | None = None
    score: float | None = None

    @property
    def is_box(self) -> bool:
        return len(self.coordinates) == 4

    @property
    def centre(self) -> tuple[float, float]:
        """A point's own place; the middle of a box."""
        if self.is_box:
            x1, y1, x2, y2 = self.coordinates
            return (x1 + x2) / 2, (y1 + y2) / 2
        x, y = self.coordinates
        return x, y

    def as_json(self) -> dict[str, JsonValue]:
        shown: dict[str, JsonValue] = {"bbox_2d" if self.is_box else "point_2d": list(self.coordinates)}
        if self.label is not None:
            shown["label"] = self.label
        if self.score is not None:
            shown["score"] = self.score
        return shown


@dataclass(frozen=True, slots=True)
class Reading:
    """The regions of a text in the order in which they end.

    `says_none`: there are none, and the text says so with an empty list, None or null. `cut`: something was still open
    at the end of the text.
    """

    regions: list[Region]
    says_none: bool
    cut: bool

    @property
    def boxes(self) -> list[Region]:
        return [region for region in self.regions if region.is_box]


def read_regions(text: str, *, pairs: Literal["boxes", "points"] = "boxes", max_regions: int = MAX_REGIONS) -> Reading:
    """All boxes and points of a text. `pairs`: what `(1, 2),(3, 4)` is, outside of box tokens.

    Raises InvalidOutput when there are more than `max_regions`, or brackets more than MAX_DEPTH deep.
    """
    return _Reader(text, pairs == "boxes", max_regions).read()


@dataclass(slots=True)
class _Frame:
    """An open bracket. `owner` is the nearest object around, itself included, and `key` the owner's key to get here."""

    is_object: bool
    owner: _Frame | None
    key: str | None = None
    word: str | None = None  # an object's text that may turn out to be a key
    label: str | None = None
    score: float | None = None
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    points: list[tuple[float, ...]] = field(default_factory=list)


class _Reader:
    """The state of one pass."""

    def __init__(self, text: str, pairs_are_boxes: bool, max_regions: int) -> None:
        self._original = text
        self._text = text.translate(_TO_ASCII)
        self._pairs_are_boxes = pairs_are_boxes
        self._max_regions = max_regions
        self._regions: list[Region] = []
        self._stack: list[_Frame] = []
        self._empty_list = False
        self._first_of_pair: tuple[float, ...] | None = None
        self._first_end = 0
        self._in_box_tokens = False
        self._ref_begin: int | None = None
        self._ref_label: str | None = None

    def read(self) -> Reading:
        position = 0
        while match := (_INSIDE if self._stack else _OUTSIDE).search(self._text, position):
            token = match.group()
            if token[0] == "<":
                position = self._mark(token, match.start(), match.end())
            elif self._ref_begin is not None:
                position = match.end()  # a label may hold any character
            else:
                position = self._punctuation(token, match.start(), position)
        self._end_pair()
        says_none = not self._regions and (self._empty_list or self._original.strip().casefold() in _NONE)
        cut = bool(self._stack) or self._in_box_tokens or self._ref_begin is not None
        return Reading(self._regions, says_none, cut)

    def _mark(self, token: str, begin: int, end: int) -> int:
        self._end_pair()
        if token == "<|object_ref_start|>":
            self._ref_begin, self._ref_label, self._in_box_tokens = end, None, False
        elif token == "<|object_ref_end|>" and self._ref_begin is not None:
            self._ref_label, self._ref_begin = _encodable(self._original[self._ref_begin : begin]), None
        elif token == "<|box_start|>":
            self._in_box_tokens, self._ref_begin = True, None
        elif token == "<|box_end|>":
            self._in_box_tokens = False
        return end

    def _punctuation(self, token: str, begin: int, previous_end: int) -> int:
        """Takes one character, and the group or text that it opens. Returns where to go on."""
        top = self._stack[-1] if self._stack else None
        if token in "[(" and (group := _GROUP.match(self._text, begin)):
            self._group(group)
            return group.end()
        if token == "{" and (plain := _PLAIN_OBJECT.match(self._text, begin)) and self._plain_object(plain):
            return plain.end()
        if token == "[" and (empty := _EMPTY_LIST.match(self._text, begin)):
            self._empty_list = True
            return empty.end()
        if token == "[":
            self._push(_Frame(False, top.owner if top else None, top.key if top else None))
        elif token == "{":
            frame = _Frame(True, None)
            frame.owner = frame
            self._push(frame)
        elif token in "]}":
            self._close(token == "}")
        elif token == ":" and top is not None and top.is_object:
            return self._value(top, self._text[previous_end:begin], begin + 1)
        return begin + 1 if token in "(]}" else self._string(begin + 1)

    def _value(self, frame: _Frame, before: str, position: int) -> int:
        """What stands after a colon: a key is complete, and a text or number may follow."""
        frame.key = (before.strip(" \t\r\n") if frame.word is None else frame.word).lower()
        frame.word = None
        if number := _NUMBER.match(self._text, position):
            if frame.key in SCORE_KEYS:
                frame.score = next(iter(_to_floats([number.group(1)])), None)
            return number.end()
        end = self._string(position)
        if frame.key in LABEL_KEYS:
            frame.label = frame.word
        return end

    def _string(self, position: int) -> int:
        """Takes the text in quotes that begins here, if one does; it ends with its line at the latest."""
        match = _STRING.match(self._text, position)
        frame = self._stack[-1] if self._stack else None
        if frame is not None:
            frame.word = None
        if match is None:
            return position
        if frame is not None:
            begin, end = match.span(match.lastindex or 0)
            frame.word = _unescaped(self._original[begin:end])
        return match.end()

    def _push(self, frame: _Frame) -> None:
        self._stack.append(frame)
        if len(self._stack) > MAX_DEPTH:
            raise InvalidOutput(f"brackets are nested more than {MAX_DEPTH} deep")

    def _close(self, is_object: bool) -> None:
        """Closes the innermost bracket of this kind and forgets what is open within it; without one, nothing."""
        depth = len(self._stack)
        while depth > 0 and self._stack[depth - 1].is_object != is_object:
            depth -= 1
        if depth == 0:
            return
        frame = self._stack[depth - 1]
        del self._stack[depth - 1 :]
        for coordinates in frame.boxes or frame.points:
            self._add(Region(coordinates, frame.label, frame.score))

    def _plain_object(self, match: re.Match[str]) -> bool:
        """Adds its box. False, and nothing done, when it is an object of another kind."""
        key, *numbers, label_key, _ = match.groups()
        box = _to_floats(numbers)
        if not box or len(self._stack) >= MAX_DEPTH:
            return False
        if key.lower() not in BOX_KEYS or label_key.lower() not in LABEL_KEYS:
            return False
        self._add(Region(box, _encodable(self._original[slice(*match.span(7))])))
        return True

    def _group(self, match: re.Match[str]) -> None:
        """Two to four numbers in brackets."""
        coordinates = _to_floats([number for number in match.groups() if number is not None])
        is_tuple = match.group()[0] == "("
        if len(coordinates) not in (2, 4) or is_tuple != (match.group()[-1] == ")"):
            return
        top = self._stack[-1] if self._stack else None
        if top is not None and top.owner is not None:
            self._give_to_owner(top.owner, top.owner.key, coordinates)
        elif len(coordinates) == 2 and is_tuple and (self._pairs_are_boxes or self._in_box_tokens):
            self._half_of_pair(coordinates, match.start(), match.end())
        else:
            self._add(Region(coordinates, self._ref_label))

    def _give_to_owner(self, owner: _Frame, key: str | None, coordinates: tuple[float, ...]) -> None:
        if len(coordinates) == 4 and (key is None or key in BOX_KEYS):
            owner.boxes.append(coordinates)
        elif len(coordinates) == 2 and (key is None or key in POINT_KEYS):
            owner.points.append(coordinates)

    def _half_of_pair(self, coordinates: tuple[float, ...], begin: int, end: int) -> None:
        first = self._first_of_pair
        if first is not None and self._text[self._first_end : begin].strip() in ("", ","):
            self._first_of_pair = None
            self._add(Region(first + coordinates, self._ref_label))
            return
        self._end_pair()
        self._first_of_pair, self._first_end = coordinates, end

    def _end_pair(self) -> None:
        """A tuple of two that no other followed is a point."""
        if self._first_of_pair is not None:
            first, self._first_of_pair = self._first_of_pair, None
            self._add(Region(first, self._ref_label))

    def _add(self, region: Region) -> None:
        self._end_pair()
        if len(self._regions) >= self._max_regions:
            raise InvalidOutput(f"more than {self._max_regions} boxes or points")
        self._regions.append(region)


def _to_floats(numbers: list[str]) -> tuple[float, ...]:
    """All of them, or none when one is out of bounds."""
    if any(len(number) > _MAX_NUMBER_CHARS for number in numbers):
        return ()
    floats = tuple(map(float, numbers))
    return floats if all(abs(value) < _TOO_LARGE for value in floats) else ()


def _unescaped(text: str) -> str:
    if "\\" in text:
        with contextlib.suppress(ValueError):  # other escapes than JSON's: as it stands
            text = str(json.loads('"' + text.replace("\\'", "'") + '"'))
    return _encodable(text)


def _encodable(text: str) -> str:
    """Half a surrogate pair, which JSON's escapes can bring in, would make the result unsendable."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
