"""Halves of surrogate pairs in a JSON body: Python's clients write them as escapes, and no strict reader takes them.

A model's text can hold one where a decoder failed, and is no reason to refuse the request. It knows bytes only.
"""

from __future__ import annotations

import re

_MAX_MENDED = 65_536  # each costs a call of Python; beyond them the body stays what it is, and is refused

# A whole pair, or a half of one. It begins with a fixed text, so that a body without any is gone through fast.
_ESCAPE = re.compile(rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})|[89a-fA-F][0-9a-fA-F]{2})")
_HALF_CHARS = 6
_MAX_BACKSLASHES = 64
_REPLACEMENT = b"\\ufffd"


def without_halves(body: bytes) -> bytes:
    """With U+FFFD in place of each half; the same bytes where there is none."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    return _ESCAPE.sub(_mended, body, count=_MAX_MENDED)


def _mended(found: re.Match[bytes]) -> bytes:
    before = found.string[max(0, found.start() - _MAX_BACKSLASHES) : found.start()]
    is_text = (len(before) - len(before.rstrip(b"\\"))) % 2 == 1  # the backslash is itself an escaped one
    if found[1] is None:
        return found[0] if is_text else _REPLACEMENT
    return found[0][:_HALF_CHARS] + _REPLACEMENT if is_text else found[0]
