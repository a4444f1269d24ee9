"""Trying one input, and making one that fails smaller. Whoever calls this gives the bytes; it knows no fuzzer."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz.drawing import Draw
from tests.fuzz.properties import Check, TooSlow, frames, mathematics_of_texts, parsers, tasks

_SHRINK_SECONDS = 30.0
_MAX_SHOWN = 1500


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong with one input. `place` is the same for two inputs that most likely show the same fault."""

    place: str
    message: str
    notes: list[tuple[str, object]]

    def shown(self) -> str:
        lines = [f"{name}: {_abbreviated(repr(value))}" for name, value in self.notes]
        return "\n".join([*lines, self.message])


def checks() -> dict[str, Check]:
    """By the names that `--targets` takes."""
    from tests.fuzz.peers import peers  # it builds an application, which the other checks do without

    return {"parsers": parsers, "tasks": tasks, "peers": peers, "frames": frames, "mathematics": mathematics_of_texts}


def attempt(check: Check, data: bytes) -> Failure | None:
    """None when all that has to hold does."""
    draw = Draw(data)
    try:
        check(draw)
    except TooSlow as error:
        return Failure(str(error).partition(" took ")[0] + " is slow", str(error), draw.notes)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = "".join(traceback.format_exception(error, limit=-4)).rstrip()
        subject = _subject(draw.notes)
        return Failure(f"{type(error).__name__} at {frame.filename}:{frame.lineno}{subject}", message, draw.notes)
    return None


def smallest(check: Check, data: bytes, failure: Failure) -> tuple[bytes, Failure]:
    """Fewer and smaller bytes with a failure at the same place, as far as that goes in half a minute."""
    until = time.monotonic() + _SHRINK_SECONDS
    best, best_failure = data, failure

    def better(candidate: bytes) -> bool:
        nonlocal best, best_failure
        found = attempt(check, candidate) if candidate != best and time.monotonic() < until else None
        if found is None or found.place != failure.place:
            return False
        best, best_failure = candidate, found
        return True

    before = None
    while before != best and time.monotonic() < until:
        before = best
        _remove_parts(lambda: best, better)
        for place in range(len(best)):
            if place < len(best) and best[place]:
                for byte in (0, 1, best[place] // 2):
                    if better(best[:place] + bytes((byte,)) + best[place + 1 :]):
                        break
    return best, best_failure


def _remove_parts(current: Callable[[], bytes], better: Callable[[bytes], bool]) -> None:
    size = len(current())
    while size > 0:
        begin = 0
        while begin < len(current()):
            if not better(current()[:begin] + current()[begin + size :]):
                begin += size
        size //= 2


def _subject(notes: list[tuple[str, object]]) -> str:
    """The task's name, where the place of the check says nothing about whose fault it is."""
    for _, value in notes:
        if isinstance(value, dict) and isinstance(value.get("task"), str):
            return f" for {value['task']}"
    return ""


def _abbreviated(shown: str) -> str:
    if len(shown) <= _MAX_SHOWN:
        return shown
    return f"{shown[: _MAX_SHOWN // 2]} ... {shown[-_MAX_SHOWN // 2 :]} ({len(shown)} characters)"
