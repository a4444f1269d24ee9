"""What becomes of weights that the engine holds: proved by the learner, or written over. Knows nothing of who waits."""

from __future__ import annotations

import asyncio
import time

from mmr1_rollout_server.errors import NotServingError


class Proof:
    """Settled once. Of the same version, sent again after it was not proved, there is another."""

    def __init__(self) -> None:
        self._due = 0.0  # by the monotonic clock
        self._holds = False
        self._settled = asyncio.Event()

    def expect(self, seconds: float) -> None:
        """The learner judges from here on, for so long at most: it leaves a server out without a word."""
        self._due = time.monotonic() + seconds

    def settle(self, holds: bool) -> None:
        """Only the first time counts."""
        if not self._settled.is_set():
            self._holds = holds
            self._settled.set()

    async def over(self) -> None:
        """Wait until it is known, or is not to be expected any more.

        Raises:
            NotServingError: the weights were not proved, or it is not known: what they have sampled counts for nothing.
        """
        if not self._settled.is_set():
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._due - time.monotonic()):
                    await self._settled.wait()
            except TimeoutError:
                raise NotServingError("the learner does not say what it thinks of these weights") from None
        if not self._holds:
            raise NotServingError("the learner has not proved these weights, and others came over them")


__all__ = ["Proof"]
