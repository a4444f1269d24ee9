"""Which rollout servers the weight updates pass over for a while, because the last ones failed at them.

A server may answer and still take no weights: to try it again and again would end the run for the sake of one. It is
left out of the next updates, holds no version that can be proved meanwhile, and is tried again after a pause that
doubles with each failure. This file knows neither phases nor weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc
import structlog

from mmr1.errors import WeightUpdateError
from mmr1.streams import Member

log = structlog.get_logger()

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 15.0, 600.0
_T = TypeVar("_T")


class LeftOut:
    """Watches what is asked of servers, one attempt at an update after the other."""

    def __init__(self) -> None:
        self._failed: dict[str, None] = {}  # addresses, the first first, of the attempt under way
        self._suspect: str | None = None  # left out on no other ground than that it failed before the others
        self._until: dict[str, tuple[float, float]] = {}  # of the address: when it is tried again, and the pause

    def begin(self) -> None:
        """A new attempt: what still fails of an earlier one says nothing about it."""
        self._failed = {}

    def watch(self, address: str, call: Callable[[], _T]) -> _T:
        """`call` asks the server at `address`. Raises what it does, and remembers at whom."""
        failed = self._failed
        try:
            return call()
        except (grpc.RpcError, WeightUpdateError):
            failed[address] = None
            raise

    def judge(self, members: Sequence[Member]) -> None:
        """The attempt with `members` has failed: leave out those that have, unless all of them have.

        One that drops out of a broadcast takes the others with it. Then the first to fail is left out, and if it goes
        no better without that one, the first of the others in its stead.
        """
        blamed = [member for member in members if member.address in self._failed]
        if len(blamed) == len(members):
            suspect, first = self._suspect, next(iter(self._failed), None)
            if suspect is None and len(members) == 1:
                return
            if suspect is not None:
                self._until.pop(suspect, None)
            self._suspect = first
            blamed = [member for member in members if member.address == first]
        for member in blamed:
            _, last = self._until.get(member.address, (0.0, 0.0))
            pause = min(_LONGEST_PAUSE_SECONDS, 2 * last) or _PAUSE_SECONDS
            self._until[member.address] = (time.monotonic() + pause, pause)
            log.warning("rollout server left out of weight updates", server=member.server_id, seconds=pause)

    def succeeded(self, members: Sequence[Member]) -> None:
        self._suspect = None
        for member in members:
            self._until.pop(member.address, None)

    def others(self, members: Sequence[Member]) -> list[Member]:
        """Those of `members` that are not left out now."""
        now = time.monotonic()
        return [member for member in members if self._until.get(member.address, (0.0, 0.0))[0] <= now]
