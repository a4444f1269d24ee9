"""Waiting for what other processes do, with an ear for being told to stop and an eye on the first failure.

Whatever may block for longer than a moment runs in a thread; the main thread, which hears signals, waits here. Knows
nothing of what is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

# Called about twenty times a second while waiting; ends the wait by raising.
Tick = Callable[[], None]

_TICK_SECONDS = 0.05
_T = TypeVar("_T")


def results(futures: Sequence[Future[_T]], tick: Tick) -> list[_T]:
    """Every result, in order. The first failure is raised at once: the others may wait for the one that failed."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_TICK_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        if pending:
            tick()
    return [future.result() for future in futures]


def settled(futures: Collection[Future[_T]], tick: Tick, seconds: float) -> None:
    """Wait for these as long as that, and no longer than until one has failed. Raises nothing but what `tick` does."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        found = wait(futures, timeout=min(_TICK_SECONDS, left), return_when=FIRST_EXCEPTION)
        if not found.not_done or any(future.exception() for future in found.done):
            return
        tick()


def rest(seconds: float, tick: Tick) -> None:
    """Let time pass."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        tick()
        time.sleep(min(_TICK_SECONDS, left))
