"""Seconds by phase, where one phase follows another. Knows none of them."""

from __future__ import annotations

import time


class Phases:
    """What each took, in seconds; one that comes again adds to its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name: str | None = None
        self._since = 0.0

    def enter(self, name: str | None) -> None:
        """The last one ends here. None: no other begins."""
        at = time.monotonic()
        if self._name is not None:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + at - self._since
        self._name, self._since = name, at
