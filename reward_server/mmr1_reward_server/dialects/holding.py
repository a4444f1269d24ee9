"""Scoring for clients that cannot be told to come back later: it waits for capacity in their place.

First come, first served: only the request at the front asks again and again, the others queue behind it. What waits is
bounded in number and in bytes. It knows no dialect; how long each may be held is theirs to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from starlette.requests import ClientDisconnect

from ..api import Item
from ..departures import found_gone, unless_left
from ..scoring import Overloaded, Scored, Scoring
from .defaults import Defaults

_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.25


class Holding:
    """One dialect's way to `Scoring`. Belongs to one event loop."""

    def __init__(self, scoring: Scoring, defaults: Defaults) -> None:
        self._scoring = scoring
        self._defaults = defaults
        self._front = asyncio.Lock()  # whoever holds it is the one that asks; its waiters are the queue
        self._num_held = 0  # those that wait; what is being scored is the scoring's
        self._bytes_held = 0

    async def score(
        self,
        items: Sequence[Item],
        *,
        num_bytes: int,
        hold_seconds: float,
        gone: Callable[[], Awaitable[bool]] | None = None,
        tries: int = 2,
    ) -> list[Scored]:
        """One verdict for each item, in order; those without a reward are tried again, `tries` times in all, except
        those that no try could score.

        Waits up to `hold_seconds` in all for capacity, scoring excluded, and gives up when the client has left.
        Raises Overloaded.
        """
        scoring = self._score(items, num_bytes, hold_seconds, gone, tries)
        if gone is None:
            return await scoring
        try:
            return await unless_left(lambda: found_gone(gone), scoring)
        except ClientDisconnect:
            raise Overloaded("the client has left") from None

    async def _score(
        self,
        items: Sequence[Item],
        num_bytes: int,
        hold_seconds: float,
        gone: Callable[[], Awaitable[bool]] | None,
        tries: int,
    ) -> list[Scored]:
        deadline = asyncio.get_running_loop().time() + hold_seconds
        scored = await self._score_once(items, num_bytes, deadline, gone)
        for _ in range(tries - 1):
            failed = [place for place, one in enumerate(scored) if not (one.outcome.has_reward or one.refused)]
            if not failed:
                break
            try:
                again = await self._score_once([items[place] for place in failed], num_bytes, deadline, gone)
            except Overloaded:
                break  # the verdicts there are say more than that no further try could be made
            for place, one in zip(failed, again, strict=True):
                scored[place] = one
        for item, one in zip(items, scored, strict=True):
            self._defaults.on_scored(item, one)
        return scored

    async def _score_once(
        self, items: Sequence[Item], num_bytes: int, deadline: float, gone: Callable[[], Awaitable[bool]] | None
    ) -> list[Scored]:
        reason = Overloaded("others wait for capacity")
        if not self._num_held:  # nobody waits, so nobody is overtaken
            try:
                return await self._scoring.score(items)
            except Overloaded as error:
                reason = error
        with self._held(num_bytes, reason):
            try:
                async with asyncio.timeout_at(deadline), self._front:
                    running = await self._admitted(items, gone)
            except TimeoutError:
                raise Overloaded(f"no capacity came free in time: {reason}") from None
        return await running  # cancelled with its caller

    async def _admitted(
        self, items: Sequence[Item], gone: Callable[[], Awaitable[bool]] | None
    ) -> asyncio.Task[list[Scored]]:
        """A call of `score` that was not refused."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            running = asyncio.ensure_future(self._scoring.score(items))
            try:
                await asyncio.sleep(0)  # one step: a call that finds no room ends with it
            except asyncio.CancelledError:
                running.cancel()
                raise
            if not running.done() or not isinstance(running.exception(), Overloaded):
                return running
            if gone is not None and await gone():
                raise Overloaded("the client has left")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    @contextmanager
    def _held(self, num_bytes: int, reason: Overloaded) -> Iterator[None]:
        limits = self._defaults
        if self._num_held >= limits.max_held_requests or self._bytes_held + num_bytes > limits.max_held_bytes:
            raise Overloaded(f"{self._num_held} requests of {self._bytes_held} bytes wait already: {reason}")
        self._count(1, num_bytes)
        try:
            yield
        finally:
            self._count(-1, -num_bytes)

    def _count(self, num_requests: int, num_bytes: int) -> None:
        self._num_held += num_requests
        self._bytes_held += num_bytes
        self._defaults.on_held(num_requests, num_bytes)
