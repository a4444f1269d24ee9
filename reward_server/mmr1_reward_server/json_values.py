"""How many values a JSON text holds, known before it is parsed: each takes a hundred bytes or so when it is, not two.

It parses nothing and checks no syntax: of a text that is no JSON, it counts what a parser could meet before it says so.
"""

from __future__ import annotations

import numpy as np

_MARKS = b",:[{"
_STRUCTURE = np.zeros(256, np.bool_)
_STRUCTURE[list(_MARKS)] = True
_QUOTE = ord('"')
_SLICE_BYTES = 2**16  # at a time, so that counting takes no memory to speak of


def has_more_values(text: bytes, limit: int) -> bool:
    """Whether a JSON text holds more than `limit` values: numbers, strings, constants, keys, lists and objects.

    An empty list or object counts as two. Linear, and next to nothing for a text that is too short to hold so many.
    """
    # Behind each mark there is at most one value, and one is the whole.
    if len(text) <= limit or len(text) - len(text.translate(None, _MARKS)) < limit:
        return False
    return _num_marks(text) >= limit


def _num_marks(text: bytes) -> int:
    """Commas, colons, opening brackets and braces that do not stand within a string."""
    if b"\\" in text:
        # In this order: the second of two backslashes escapes nothing.
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    count = 0
    within = np.uint8(0)
    for begin in range(0, len(text), _SLICE_BYTES):
        characters = np.frombuffer(text, np.uint8, min(_SLICE_BYTES, len(text) - begin), begin)
        # Odd behind an opening quote, even behind a closing one; it may overflow.
        quotes = np.cumsum(characters == _QUOTE, dtype=np.uint8) + within
        within = quotes[-1] & 1
        count += int(np.count_nonzero(_STRUCTURE[characters] & (quotes & 1 == 0)))
    return count
