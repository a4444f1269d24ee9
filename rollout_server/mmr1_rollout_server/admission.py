"""Who may sample, and how many do. Knows nothing of weights, engines or streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mmr1_rollout_server.errors import DeadlinePassedError


class Admission:
    """A gate that counts what has passed it and has not come back."""

    def __init__(self) -> None:
        self.num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count one sampling prompt."""
        self.num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_running -= 1
            if not self.num_running:
                self._idle.set()

    async def wait_idle(self, deadline_seconds: float) -> float:
        """Wait until nothing runs; returns the seconds that took.

        Raises:
            DeadlinePassedError: something still runs.
        """
        begun = time.monotonic()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._idle.wait()
        except TimeoutError:
            raise DeadlinePassedError(
                f"{self.num_running} prompts still run after {deadline_seconds:g} s; raise pause_deadline_seconds"
            ) from None
        return time.monotonic() - begun
