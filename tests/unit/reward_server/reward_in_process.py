"""A `Scoring` in threads of the test's own process, for tests of what stands before it over tasks of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from mmr1_reward_server.api import Item, Outcome
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.scoring import Overloaded, Scored, scored_item, without_reward

_PATIENT_SECONDS = 60.0  # no scorer takes so long, however busy the machine is


class InProcessScoring:
    """`deadlines`: seconds for one item of tasks that are too slow on purpose. No other task's item is ever late."""

    def __init__(
        self,
        registry: Registry,
        *,
        deadlines: Mapping[str, float] | None = None,
        max_response_chars: int = 1000,
        max_pending_items: int = 16_384,
    ) -> None:
        self._registry = registry
        self._deadlines = deadlines or {}
        self._max_response_chars = max_response_chars
        self._max_pending = max_pending_items
        self.num_pending = 0
        self.num_alive = 1
        self.unready: str | None = None

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self.unready = "the server is shutting down"

    async def score(self, items: Sequence[Item]) -> list[Scored]:
        if self.num_pending + len(items) > self._max_pending:
            raise Overloaded(f"{self.num_pending} items are pending, {self._max_pending} is the limit; try again soon")
        self.num_pending += len(items)
        try:
            return [await self._score(item) for item in items]
        finally:
            self.num_pending -= len(items)

    async def _score(self, item: Item) -> Scored:
        began = time.monotonic()
        deadline = self._deadlines.get(item.task or "", _PATIENT_SECONDS)
        limit = self._max_response_chars
        running = asyncio.to_thread(scored_item, self._registry, item, max_response_chars=limit)
        try:
            scored = await asyncio.wait_for(running, deadline)
        except TimeoutError:
            detail = f"the scorer of this item did not finish within {deadline:g} s"
            scored = Scored(without_reward(item, Outcome.TIMEOUT, detail), 0.0)
        scored.seconds = time.monotonic() - began
        return scored
