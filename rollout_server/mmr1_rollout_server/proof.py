"""What becomes of weights that the engine holds: proved by the learner, or written over. Knows nothing of who waits."""

from __future__ import annotations

import asyncio

from mmr1_rollout_server.errors import NotServingError


class Proof:
    """Settled once. Of the same version, sent again after it was not proved, there is another."""

    def __init__(self) -> None:
        self._holds = False
        self._settled = asyncio.Event()

    def settle(self, holds: bool) -> None:
        """Only the first time counts."""
        if not self._settled.is_set():
            self._holds = holds
            self._settled.set()

    async def over(self, seconds: float) -> None:
        """Wait until it is known, not longer than `seconds`: a learner leaves a server out without a word.

        Raises:
            NotServingError: the weights were not proved, or it is not known: what they have sampled counts for nothing.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._settled.wait()
        except TimeoutError:
            raise NotServingError(f"the learner has not proved these weights within {seconds:g} s") from None
        if not self._holds:
            raise NotServingError("the learner has not proved these weights, and others came over them")


__all__ = ["Proof"]
