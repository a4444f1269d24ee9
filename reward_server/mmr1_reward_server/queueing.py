"""Items that wait for a worker, batch by batch in turn: a request of one item does not stand behind one of thousands.

It starts nothing, awaits nothing and knows no worker; how many items go together is the pool's business.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .api import Item
from .scoring import Scored


@dataclass(eq=False, slots=True)
class Batch:
    """The items of one call of `score`, and the verdicts as they come."""

    done: asyncio.Future[None]
    scored: list[Scored | None]
    num_missing: int
    waiting: deque[Pending] = field(default_factory=deque)  # the queue's: those of its items that are in it

    def settle(self, place: int, scored: Scored) -> None:
        self.scored[place] = scored
        self.num_missing -= 1
        if not self.num_missing and not self.done.done():
            self.done.set_result(None)


@dataclass(eq=False, slots=True)
class Pending:
    """One item that has no verdict yet. `encoded` is what a worker is sent, once it is known."""

    item: Item
    batch: Batch
    place: int
    num_attempts: int = 0
    encoded: bytes | None = None


class FairQueue:
    """Gives one item of each waiting batch in turn; within a batch, in order. Every operation on an item is O(1)."""

    def __init__(self) -> None:
        self._turns: OrderedDict[Batch, None] = OrderedDict()  # batches of which items wait, the next one first
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def add(self, items: Sequence[Pending]) -> None:
        """Behind all others of their batches; a new batch has its turn after those that wait."""
        for pending in items:
            pending.batch.waiting.append(pending)
            self._turns.setdefault(pending.batch)
        self._num_waiting += len(items)

    def first(self) -> Pending:
        """The item whose turn it is; it stays. Raises IndexError when none waits."""
        for batch in self._turns:
            return batch.waiting[0]
        raise IndexError("no item waits")

    def pop(self) -> Pending:
        """The item whose turn it is; the turn passes to the next batch. Raises IndexError when none waits."""
        pending = self.first()
        batch = pending.batch
        batch.waiting.popleft()
        self._num_waiting -= 1
        if batch.waiting:
            self._turns.move_to_end(batch)
        else:
            del self._turns[batch]
        return pending

    def put_back(self, items: Sequence[Pending]) -> None:
        """Items that were taken, in the order in which they were: before the others of their batches.

        A batch of which nothing waited is next; one that has a turn keeps it. Items whose caller has gone are left out.
        """
        for pending in reversed(items):
            batch = pending.batch
            if batch.done.done():
                continue
            batch.waiting.appendleft(pending)
            self._num_waiting += 1
            if batch not in self._turns:
                self._turns[batch] = None
                self._turns.move_to_end(batch, last=False)

    def drop(self, batch: Batch) -> None:
        """The items of a batch whose caller has gone."""
        self._turns.pop(batch, None)
        self._num_waiting -= len(batch.waiting)
        batch.waiting.clear()
