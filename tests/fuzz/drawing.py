"""What a fuzzer's bytes stand for: texts as models write them, JSON values, values that a schema describes, mutations.

The same bytes always give the same values, and when they are used up, the simplest ones: an input can be replayed, and
be made smaller byte by byte. It knows no property that has to hold, and no fuzzer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

MAX_CHARS = 100_000
_USUAL_CHARS = 2_000
_REPETITIONS = (2, 3, 5, 10, 33, 65, 300, 1001)
_LEVELS = (1, 2, 5, 15, 16, 31, 32, 33, 62, 63, 64, 65, 66, 99, 150, 260)

# Pieces of every notation that is read, so that texts are nearly right far more often than any bytes would be.
_PIECES = (
    *(
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "<|im_end|>",
        "<|endoftext|>",
        "```json\n",
        "```",
        "\n",
        " ",
        ",",
    ),
    *(
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
        "(1,2),(30,40)",
        "(1,2,3,4)",
        "(5,6)",
    ),
    *(
        "[0, 0, 10, 10]",
        '{"bbox_2d": [0, 0, 10, 10], "label": "dog"}',
        '{"point_2d": [5, 5]}',
        '"score": 0.5',
        "[]",
        "{}",
    ),
    *(
        '"label": "\\ud800"',
        "'label': 'a\\'b'",
        "[[1, 2, 3, 4]]",
        "None",
        "null",
        "NaN",
        "1e999",
        "-1e999",
        "1e-400",
        "007",
    ),
    *("1,234", "1_0", "3.5.", ".5", "-", "+", "−", "３", "twenty", "two hundred", " and ", "-one", "９" * 20),  # noqa: RUF001
    *(
        "\\boxed{",
        "\\boxed {",
        "}",
        "{",
        "\\{",
        "\\",
        "$",
        "\\text{",
        "\\frac{1}{2}",
        "^",
        "_",
        "!",
        "answer is ",
        "Option ",
    ),
    *(
        "(B)",
        "**C**",
        "A cat",
        "B.",
        "D: ",
        "I",
        "x",
        "dog",
        "我有",
        "한국",
        "\u0301",
        "\ufdfa",
        "\u1e9e",
        "İ",
        "\x00",
        "\r",
    ),
    *(
        '"',
        "'",
        "[",
        "]",
        "(",
        ")",
        ":",
        "<",
        ">",
        "/",
        "|",
        "&",
        ";",
        "\t",
        "\u2028",
        "\ufeff",
        "a*",
        "(a|b)*",
        "\\pL{9}",
    ),
)
_OPENINGS = ("[", "{", "(", '{"a":', "\\boxed{", "$", "\\frac{", "<answer>", "[[")
_CLOSINGS = ("]", "}", ")", "}", "}", "$", "}", "</answer>", "]]")
_NUMBERS = (
    *(
        0,
        1,
        -1,
        2,
        3,
        4,
        10,
        100,
        999,
        1000,
        1001,
        2**31,
        2**53 + 1,
        -(2**63),
        2**70,
        10**400,
        0.5,
        0.1,
        -0.0,
        1.5,
        1e-9,
    ),
    *(1e15, 1e16, 1e99, 1e100, 1.1e100, 1e154, 1e200, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), float("nan")),
)
_KEYS = (
    *(
        "task",
        "text",
        "solution",
        "params",
        "image_size",
        "a",
        "",
        "label",
        "bbox_2d",
        "point",
        "score",
        "boxes",
        "answer",
    ),
    *("response", "query", "prompts", "labels", "reward", "output", "content", "ground_truth", "role", "type"),
)


class Draw:
    """A source of values. `notes` says what was made of the bytes, for whoever reads a finding."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self.notes: list[tuple[str, Any]] = []

    def note(self, name: str, value: T) -> T:
        self.notes.append((name, value))
        return value

    def below(self, limit: int) -> int:
        """From 0 to `limit` - 1; 0 when the bytes are used up."""
        number, bound = 0, 1
        while bound < limit and self._position < len(self._data):
            number = number << 8 | self._data[self._position]
            bound <<= 8
            self._position += 1
        return number % limit

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def chance(self, out_of: int) -> bool:
        return self.below(out_of) == 1

    def raw(self, max_bytes: int) -> bytes:
        begin = self._position + 1
        self._position = min(begin + self.below(max_bytes), len(self._data))
        return self._data[begin : self._position]

    def text(self, max_chars: int = MAX_CHARS) -> str:
        """A model's or a dataset's: pieces, characters, repetitions, nesting. No half surrogate pairs."""
        # Long ones are rare: each takes the time of hundreds of others.
        max_chars = max_chars if self.below(16) == 15 else min(max_chars, _USUAL_CHARS)
        text = part = ""
        while kind := self.below(20):
            if kind < 11:
                part = self.one_of(_PIECES)
            elif kind < 14:
                part = self.raw(40).decode("utf-8", "replace")
            elif kind == 14:
                part = self.character()
            elif kind == 15:
                part = str(self.one_of(_NUMBERS))
            elif kind == 16:
                part = part[: max_chars // 2] * self._times(part, max_chars)
            elif kind == 17:
                text *= self._times(text, max_chars)
            elif kind == 18:
                place, levels = self.below(len(_OPENINGS)), self.one_of(_LEVELS)
                text, part = _OPENINGS[place] * levels + text, _CLOSINGS[place] * self.one_of((levels, 0, 1))
            else:
                part = json.dumps(self.value(), ensure_ascii=self.chance(2))
            text = (text + part)[:max_chars]
        return text

    def near(self, text: str) -> str:
        """The text with some of its parts replaced, moved to elsewhere or gone."""
        for _ in range(self.below(6)):
            begin = self.below(len(text) + 1)
            end = begin + self.below(12)
            part = self.one_of(("", str(self.number()), text[end:], text[begin:end] * 2, self.text()))
            text = (text[:begin] + part + text[end:])[:MAX_CHARS]
        return text

    def character(self) -> str:
        char = chr(self.below(0x110000))
        return "\ufffd" if "\ud800" <= char <= "\udfff" else char

    def value(self, depth: int = 4) -> Any:
        """Any JSON value, with the numbers that Python's and pydantic's readers let pass beyond JSON."""
        kind = self.below(16)
        if kind < 3:
            return (None, False, True)[kind]
        if kind < 6:
            return self.number()
        if kind < 9 or depth == 0:
            return self.text(300)
        if kind == 9:
            return json.dumps(self.value(depth - 1))
        if kind == 10:
            return self.nested(self.value(depth - 1))
        if kind < 14:
            return [self.value(depth - 1) for _ in range(self.below(6))]
        return {self.key(): self.value(depth - 1) for _ in range(self.below(5))}

    def number(self) -> Any:
        return self.one_of(_NUMBERS) if self.chance(2) else self.below(2000) / self.one_of((1, 1, 10, 1000))

    def key(self) -> str:
        return self.text(300) if self.chance(8) else self.one_of(_KEYS)

    def nested(self, value: Any) -> Any:
        """The value within many lists or objects, up to and beyond what is passed on."""
        as_object, key = self.chance(2), self.key()
        for _ in range(self.one_of(_LEVELS)):
            value = {key: value} if as_object else [value]
        return value

    def described(self, schema: dict[str, Any], definitions: dict[str, Any] | None = None, depth: int = 6) -> Any:
        """What a JSON schema describes; now and then something else."""
        definitions = schema.get("$defs", {}) if definitions is None else definitions
        if depth == 0 or self.below(40) == 39:
            return self.value(2)
        if "$ref" in schema:
            return self.described(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions, depth - 1)
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.described(self.one_of(schema[several]), definitions, depth - 1)
        if "enum" in schema or "const" in schema:
            return self.one_of(schema.get("enum") or [schema["const"]])
        return self._of_type(schema, definitions, depth)

    def _of_type(self, schema: dict[str, Any], definitions: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if kind == "boolean":
            return self.chance(2)
        if kind == "null":
            return None
        if kind in ("integer", "number"):
            least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
            return self.number() if self.chance(8) else least + self.below(12) / (1 if kind == "integer" else 4)
        if kind == "string":
            return self.one_of((3, "B", "$x$", "[1, 2, 3, 4]")) if self.chance(9) else self.text()
        if kind == "array":
            inner = schema.get("prefixItems") or [schema.get("items", {})] * (schema.get("minItems", 0) + self.below(6))
            values = [self.described(one, definitions, depth - 1) for one in inner]
            return values * self.one_of((1, 1, 1, 1, 2, 30, 500)) if "maxItems" not in schema else values
        if kind == "object":
            named = schema.get("properties", {})
            required = schema.get("required", ())
            return {
                name: self.described(one, definitions, depth - 1)
                for name, one in named.items()
                if name in required or self.chance(3)
            }
        return self.value()

    def mutated(self, value: Any) -> Any:
        """A copy in which some places hold other values, or are gone, or are there twice."""
        whole = [copy.deepcopy(value)]
        for _ in range(self.below(5)):
            within: Any = whole
            place: Any = 0
            while isinstance(within[place], (list, dict)) and within[place] and not self.chance(4):
                within = within[place]
                place = self.one_of(list(within)) if isinstance(within, dict) else self.below(len(within))
            self._change(within, place, removable=within is not whole)
        return whole[0]

    def _change(self, within: Any, place: Any, *, removable: bool) -> None:
        kind = self.below(8)
        if kind == 0 and removable:
            del within[place]
        elif kind == 1 and isinstance(within, dict):
            within[self.key()] = self.value()
        elif kind == 2 and removable and isinstance(within, list):
            within *= self.one_of((2, 3, 1100))
        elif kind == 3:
            within[place] = self.nested(within[place])
        elif kind == 4:
            within[place] = json.dumps(within[place])
        elif kind == 5 and isinstance(within[place], str):
            within[place] = (self.text() + within[place] + self.text())[:MAX_CHARS]
        else:
            within[place] = self.value()

    def _times(self, text: str, max_chars: int) -> int:
        """How often to repeat a text, kept from growing far over the limit."""
        times = MAX_CHARS if self.below(32) == 31 else self.one_of(_REPETITIONS)
        return min(times, max_chars // max(len(text), 1) + 1)
