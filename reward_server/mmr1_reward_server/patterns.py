"""Regular expressions that come with a request. RE2 runs them: in linear time, in bounded memory, and without the
interpreter's lock. It knows no task.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2

MAX_PATTERN_CHARS = 1_000
_MAX_COMPILED = 64
# For the program and its states. It holds what a thousand characters can say, but not `\\pL{500}`.
_MAX_BYTES = 2**18


class BadPattern(ValueError):
    """RE2 cannot take this pattern. Says what is wrong, and where."""


class Pattern:
    """A compiled pattern."""

    def __init__(self, pattern: str) -> None:
        """Raises BadPattern."""
        self._compiled = _compile(pattern)

    def matches(self, text: str) -> bool:
        """Whether the pattern matches the whole text."""
        # Bytes, because RE2 would otherwise translate offsets that nobody asks for.
        return self._compiled.fullmatch(text.encode("utf-8", "replace")) is not None


@lru_cache(maxsize=_MAX_COMPILED)
def _compile(pattern: str) -> Any:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise BadPattern(f"has {len(pattern)} characters, the limit is {MAX_PATTERN_CHARS}")
    options = re2.Options()
    options.max_mem = _MAX_BYTES
    options.log_errors = False
    try:
        return re2.compile(pattern.encode("utf-8"), options)
    except UnicodeEncodeError as error:
        raise BadPattern(f"has half a surrogate pair at character {error.start}") from None
    except re2.error as error:
        raise BadPattern(_explain(pattern, error)) from None


def _explain(pattern: str, error: Exception) -> str:
    """RE2's message, `what: fragment`, with the place where the fragment begins."""
    message = error.args[0]
    message = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    what, colon, fragment = message.partition(": ")
    place = pattern.find(fragment) if colon and fragment else -1
    return f"{what} at character {place}: {fragment}" if place >= 0 else message
