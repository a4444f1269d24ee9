"""A circuit breaker for the reward server: after failures in a row nothing more is asked of it until a probe succeeds.

Sampling for a server that cannot score is wasted, and so is asking it ever again. It counts and keeps time; it asks
nothing itself, and knows nothing of prompts or groups.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FAILURES_TO_OPEN = 3
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0
_JITTER = 0.5  # of a pause, either way: servers that lost the same one do not ask it at the same moment


class Breaker:
    """Closed: scoring goes on. Open: it does not, and a probe is due now and then.

    Args:
        on_change: called when it opens or closes.
        clock: seconds, and `spread` a factor for a pause; tests give their own.
    """

    def __init__(
        self,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = lambda: random.uniform(1 - _JITTER, 1 + _JITTER),
    ) -> None:
        self.is_open = False
        self.reason = ""  # of the last failure; empty while all is well
        self._on_change = on_change
        self._clock = clock
        self._spread = spread
        self._num_failures = 0
        self._pause = _FIRST_PAUSE_SECONDS
        self._probe_at = 0.0

    @property
    def detail(self) -> str:
        """For people: empty while it is closed."""
        return f"the reward server does not score, prompts wait: {self.reason}" if self.is_open else ""

    @property
    def is_probe_due(self) -> bool:
        return self.is_open and self._clock() >= self._probe_at

    def scored(self) -> None:
        """The server has scored a group: whatever failed before is forgotten."""
        self._num_failures, self._pause, self.reason = 0, _FIRST_PAUSE_SECONDS, ""
        self._set(False)

    def failed(self, reason: str, *, is_gone: bool = False) -> bool:
        """A group could not be scored. Opens when that is one too many, or at once when the server `is_gone`.

        Returns whether it is open now.
        """
        self.reason = reason
        self._num_failures += 1
        if (is_gone or self._num_failures >= FAILURES_TO_OPEN) and not self.is_open:
            self._wait()
            self._set(True)
        return self.is_open

    def probed(self, succeeded: bool) -> None:
        """What a probe found. After a success the next group decides: if it fails, it is open again, for longer."""
        if succeeded:
            self._num_failures = FAILURES_TO_OPEN - 1
            self._set(False)
        else:
            self._wait()

    def _wait(self) -> None:
        self._probe_at = self._clock() + self._pause * self._spread()
        self._pause = min(_LONGEST_PAUSE_SECONDS, self._pause * 2)

    def _set(self, is_open: bool) -> None:
        if is_open is not self.is_open:
            self.is_open = is_open
            self._on_change()


__all__ = ["FAILURES_TO_OPEN", "Breaker"]
