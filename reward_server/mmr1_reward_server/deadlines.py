"""An end to a computation of pure Python, by the processor time that it takes.

It interrupts by a signal, so it ends nothing off the main thread (there it lets everything run), and no single step of
compiled code. It knows nothing of what is computed.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

# Should the first interruption be swallowed, by a destructor or a bare `except`, another follows.
_AGAIN_SECONDS = 0.05
_SHORTEST_SECONDS = 0.01


class OutOfTime(Exception):
    """The computation was given up."""


class _Interruption(BaseException):
    """Not an Exception: whoever handles all of these must not take it for a failure of its own."""


def within_processor_time(seconds: float, compute: Callable[[], T]) -> T:
    """What `compute` returns. Raises OutOfTime when it has kept the processor busy for `seconds`, and what it raises.

    What was given up is left half done: caches that it was filling are to be cleared.
    """
    if threading.current_thread() is not threading.main_thread():
        return compute()
    running = True
    began = time.thread_time()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not running:
            return
        # The timer runs down by what all threads of this process do; only this one's work is limited.
        left = seconds - (time.thread_time() - began)
        if left <= 0:
            raise _Interruption
        signal.setitimer(signal.ITIMER_VIRTUAL, max(left, _SHORTEST_SECONDS), _AGAIN_SECONDS)

    previous = signal.signal(signal.SIGVTALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN_SECONDS)
    try:
        try:
            return compute()
        finally:
            running = False
    except _Interruption:
        raise OutOfTime from None
    finally:
        running = False
        signal.setitimer(signal.ITIMER_VIRTUAL, *timer)
        signal.signal(signal.SIGVTALRM, previous)
