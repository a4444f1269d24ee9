"""Scoring in threads of the server's own process: one daemon thread for each batch, watched from the event loop.

A thread cannot be killed: one whose scorer passes its deadline is left behind, counted, and the rest of its batch goes
on in a new thread. Nor can a scorer that holds the interpreter's lock be interrupted: isolation is what worker
processes are for, and they can take this class's place behind `Scoring`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

from .api import Item, Outcome
from .registry import Registry
from .scoring import Overloaded, Scored, score_item, without_reward


class ThreadScoring:
    """A `Scoring` for scorers that are trusted to end. Belongs to one event loop."""

    def __init__(
        self,
        registry: Registry,
        *,
        num_threads: int,
        item_deadline_seconds: float,
        max_response_chars: int,
        max_pending_items: int,
        max_stuck_threads: int,
    ) -> None:
        self._registry = registry
        self._free_threads = asyncio.Semaphore(num_threads)
        self._deadline = item_deadline_seconds
        self._max_response_chars = max_response_chars
        self._max_pending = max_pending_items
        self._max_stuck = max_stuck_threads
        self._num_pending = 0
        self._stuck: set[_Run] = set()
        self._closed = False

    @property
    def num_pending(self) -> int:
        return self._num_pending

    @property
    def unready(self) -> str | None:
        if self._closed:
            return "the server is shutting down"
        self._stuck = {run for run in self._stuck if run.alive}
        if len(self._stuck) >= self._max_stuck:
            return f"{len(self._stuck)} scorers are past their deadline and still running; restart the server"
        return None

    async def score(self, items: Sequence[Item]) -> list[Scored]:
        if reason := self.unready:
            raise Overloaded(reason)
        if self._num_pending + len(items) > self._max_pending:
            raise Overloaded(f"{self._num_pending} items are pending, {self._max_pending} is the limit; try again soon")
        self._num_pending += len(items)
        try:
            async with self._free_threads:
                return await self._score_batch(items)
        finally:
            self._num_pending -= len(items)

    async def close(self) -> None:
        """Refuses further items. Threads left behind are daemons, so they do not keep the process alive."""
        self._closed = True

    async def _score_batch(self, items: Sequence[Item]) -> list[Scored]:
        scored: list[Scored] = []
        while len(scored) < len(items):
            if reason := self.unready:  # this batch itself may have used up the threads that may be stuck
                detail = f"not scored: {reason}"
                scored += [
                    Scored(without_reward(one, Outcome.VERIFIER_ERROR, detail), 0.0) for one in items[len(scored) :]
                ]
                break
            run = _Run(self._registry, items[len(scored) :], self._max_response_chars)
            try:
                in_time = await run.watch(self._deadline)
            finally:
                scored += run.abandon()  # also when the caller has gone: the thread stops after its current item
            if not in_time:
                self._stuck.add(run)
                detail = f"the scorer of this item did not finish within {self._deadline:g} s"
                scored.append(Scored(without_reward(items[len(scored)], Outcome.TIMEOUT, detail), self._deadline))
        return scored


class _Run:
    """One thread's way through some items. Ends early when abandoned, then as soon as its current item lets it."""

    def __init__(self, registry: Registry, items: Sequence[Item], max_response_chars: int) -> None:
        self._registry = registry
        self._items = items
        self._max_response_chars = max_response_chars
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        # Between the thread that finishes an item and the loop that gives it up for late: one of them comes first.
        self._lock = threading.Lock()
        self._scored: list[Scored] = []
        self._item_began = time.monotonic()
        self._abandoned = False
        self._thread = threading.Thread(target=self._score_all, name="scoring", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def watch(self, deadline_seconds: float) -> bool:
        """True once all items are scored; False, and abandoned, when one has run for longer than its deadline."""
        while not self._done.done():
            with self._lock:
                left = self._item_began + deadline_seconds - time.monotonic()
                if len(self._scored) == len(self._items):
                    return True
                if left <= 0:
                    self._abandoned = True
                    return False
            await asyncio.wait({self._done}, timeout=left)
        return True

    def abandon(self) -> list[Scored]:
        """What is scored by now. Later verdicts are thrown away."""
        with self._lock:
            self._abandoned = True
            return self._scored

    def _score_all(self) -> None:
        for item in self._items:
            result = score_item(self._registry, item, max_response_chars=self._max_response_chars)
            with self._lock:
                if self._abandoned:
                    return
                now = time.monotonic()
                self._scored.append(Scored(result, now - self._item_began))
                self._item_began = now
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)
