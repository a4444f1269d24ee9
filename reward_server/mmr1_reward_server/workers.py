"""Scoring in worker processes: a pool that takes from its queue in micro-batches, and a deadline for each item.

An item that hangs or kills its worker takes down itself only: the worker is replaced, what stood behind the item goes
to another one. It knows no HTTP and no task; one worker's process is the business of `worker_process`, whose turn it is
that of `queueing`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from .api import Item, Outcome
from .queueing import Batch, FairQueue, Pending
from .scoring import Overloaded, Scored, WorkersCannotStart, too_deep, without_reward
from .worker_process import WorkerOptions, WorkerProcess, WorkerStartError
from .worker_wire import encode_item

logger = logging.getLogger(__name__)

# A frame is meant to take about so long, so that its cost is shared and yet no item waits long behind another.
_FRAME_SECONDS = 0.01
_MAX_FRAME_ITEMS = 256
_MAX_FRAME_BYTES = 2**20  # of several items; one alone may be as large as a body
_SMOOTHING = 0.3  # of the newest frame in the mean that guesses the next
_FIRST_GUESS_SECONDS = 0.0005  # of scoring one item

_MAX_ATTEMPTS = 3  # of an item whose worker ended, and nobody knows which item's fault that was
_FAILED_STARTS = 3  # in a row, until the pool counts as broken
_FIRST_BACK_OFF_SECONDS = 0.1
_LONGEST_BACK_OFF_SECONDS = 10.0
_END_SECONDS = 1.0


class WorkerPool:
    """A `Scoring`. Belongs to one event loop; its processes start with `start` or the first call of `score`."""

    def __init__(
        self,
        options: WorkerOptions,
        *,
        num_workers: int,
        item_deadline_seconds: float,
        max_pending_items: int,
        on_restart: Callable[[str], None] = lambda cause: None,
    ) -> None:
        self._options = options
        self._num_workers = num_workers
        self._deadline = item_deadline_seconds
        self._max_pending = max_pending_items
        self._on_restart = on_restart
        self._queue = FairQueue()
        self._num_pending = 0
        self._frames: dict[WorkerProcess, list[Pending]] = {}  # what each worker that is ready has in hand
        self._idle: list[WorkerProcess] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._ready_or_broken: asyncio.Event | None = None
        self._broken: str | None = None
        self._closed = False
        self._item_seconds = _FIRST_GUESS_SECONDS
        self._dispatch_planned = False
        self._watch: asyncio.TimerHandle | None = None

    @property
    def num_pending(self) -> int:
        return self._num_pending

    @property
    def num_alive(self) -> int:
        """Workers that are ready to score or scoring."""
        return len(self._frames)

    @property
    def unready(self) -> str | None:
        if self._closed:
            return "the server is shutting down"
        return f"no scoring process starts: {self._broken}" if self._broken else None

    async def start(self) -> None:
        """Returns when a worker is ready. Raises WorkersCannotStart."""
        await self._started().wait()
        if self._broken:
            raise WorkersCannotStart(self._broken)

    async def score(self, items: Sequence[Item]) -> list[Scored]:
        if reason := self.unready:
            raise Overloaded(reason)
        if self._num_pending + len(items) > self._max_pending:
            raise Overloaded(f"{self._num_pending} items are pending, {self._max_pending} is the limit; try again soon")
        if not items:
            return []
        self._started()
        batch = Batch(asyncio.get_running_loop().create_future(), [None] * len(items), len(items))
        self._num_pending += len(items)
        waiting: list[Pending] = []
        for place, item in enumerate(items):
            if refusal := too_deep(item):
                batch.settle(place, refusal)
            else:
                waiting.append(Pending(item, batch, place))
        self._queue.add(waiting)
        self._plan_dispatch()
        try:
            await batch.done
        finally:
            self._num_pending -= len(items)
            if batch.num_missing:  # the caller has gone
                self._queue.drop(batch)
        return [one for one in batch.scored if one is not None]

    async def close(self) -> None:
        """Refuses further items, fails those that are left, and ends the processes."""
        self._closed = True
        self._fail_queue("the server is shutting down")
        for worker, frame in self._frames.items():
            if frame:
                worker.kill("closed")
            else:
                worker.close_pipe()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=_END_SECONDS)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def _started(self) -> asyncio.Event:
        if self._ready_or_broken is None:
            self._ready_or_broken = asyncio.Event()
            self._keepers = [asyncio.ensure_future(self._keep_one()) for _ in range(self._num_workers)]
            for keeper in self._keepers:
                keeper.add_done_callback(self._keeper_ended)
        return self._ready_or_broken

    async def _keep_one(self) -> None:
        """Keeps one worker running: starts it, waits for its end, starts the next."""
        assert self._ready_or_broken is not None
        num_failures = 0
        while not self._closed:
            try:
                num_failures = 0 if await self._one_life() else num_failures + 1
            except WorkerStartError as error:
                num_failures += 1
                self._start_failed(str(error), num_failures)
            if num_failures and not self._closed:
                back_off = min(_FIRST_BACK_OFF_SECONDS * 2.0 ** min(num_failures - 1, 10), _LONGEST_BACK_OFF_SECONDS)
                await asyncio.sleep(back_off)

    async def _one_life(self) -> bool:
        """As `_lifetime`, of a worker that is yet to start. Raises WorkerStartError."""
        worker = WorkerProcess(self._take_results)
        try:
            await worker.start(self._options)
            return await self._lifetime(worker)
        finally:
            worker.kill("closed")  # also when this task is cancelled: no process is left behind
            await worker.ended()
            self._bury(worker, self._frames.pop(worker, []))  # what is left when `_lifetime` did not come to its end

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        """A keeper ends with the pool. If a bug ends it before, nobody may wait for what it will not do."""
        if self._closed or keeper.cancelled() or (error := keeper.exception()) is None:
            return
        assert self._ready_or_broken is not None
        logger.error("the keeper of a worker failed", exc_info=error)
        self._keepers.remove(keeper)
        if not self._keepers:
            self._broken = f"a bug in the server: {type(error).__name__}: {error}"
            self._ready_or_broken.set()
            self._fail_queue(f"no scoring process starts: {self._broken}")

    async def _lifetime(self, worker: WorkerProcess) -> bool:
        """From ready to buried. False for a process that ended without having been given an item."""
        assert self._ready_or_broken is not None
        self._broken = None
        self._ready_or_broken.set()
        self._frames[worker] = []
        self._idle.append(worker)
        self._dispatch()
        await worker.ended()
        if worker in self._idle:
            self._idle.remove(worker)
        if not self._closed:
            cause = worker.killed_for or "died"
            self._on_restart(cause)
            logger.warning("worker replaced", extra={"fields": {"cause": cause, "end": worker.end}})
        self._bury(worker, self._frames.pop(worker))
        return worker.num_sent > 0

    def _start_failed(self, problem: str, num_failures: int) -> None:
        assert self._ready_or_broken is not None
        if self._closed:
            return
        self._on_restart("start_failed")
        logger.error("a worker did not start", extra={"fields": {"problem": problem, "failures": num_failures}})
        if num_failures >= _FAILED_STARTS and not self._frames:
            self._broken = problem
            self._ready_or_broken.set()
            self._fail_queue(f"no scoring process starts: {problem}")

    def _fail_queue(self, reason: str) -> None:
        while self._queue:
            self._fail(self._queue.pop(), Outcome.VERIFIER_ERROR, f"not scored: {reason}")

    def _plan_dispatch(self) -> None:
        """Once for all requests that arrive in this turn of the loop: they share a frame."""
        if not self._dispatch_planned:
            self._dispatch_planned = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_planned = False
        while self._queue and self._idle:
            # Each of the idle workers gets its share, and none more than is done soon.
            share = -(-len(self._queue) // len(self._idle))
            quick = int(_FRAME_SECONDS / self._item_seconds)
            taken = self._take(max(1, min(share, quick, _MAX_FRAME_ITEMS)))
            if not taken:
                continue
            worker = self._idle.pop()
            worker.send([one.encoded for one in taken if one.encoded is not None])
            self._frames[worker] = taken
            if self._watch is None:
                self._watch = asyncio.get_running_loop().call_later(self._deadline, self._look_for_late)

    def _take(self, num_items: int) -> list[Pending]:
        """Items that go together, encoded; none when there was only what cannot be."""
        taken: list[Pending] = []
        num_bytes = 0
        while self._queue and len(taken) < num_items:
            pending = self._queue.first()
            # One that may have been the end of a worker goes alone, so that it is known next time.
            if taken and (taken[0].num_attempts or pending.num_attempts):
                break
            if pending.encoded is None:
                try:
                    pending.encoded = encode_item(pending.item)
                except ValueError:  # what no JSON can hold: an item that was not read from any
                    self._fail_unreadable(self._queue.pop())
                    continue
            num_bytes += len(pending.encoded)
            if taken and num_bytes > _MAX_FRAME_BYTES:
                break
            taken.append(self._queue.pop())
        return taken

    def _look_for_late(self) -> None:
        """Kills workers whose item is past its deadline, and comes back when the next one could be."""
        self._watch = None
        due = [(worker, worker.due_in(self._deadline)) for worker in self._frames]
        for worker, seconds in due:
            if seconds is not None and seconds <= 0:
                worker.kill("stalled" if worker.late_position is None else "timeout")
        left = [seconds for _, seconds in due if seconds is not None and seconds > 0]
        if left:
            self._watch = asyncio.get_running_loop().call_later(min(*left, self._deadline), self._look_for_late)

    def _take_results(self, worker: WorkerProcess, results: list[Scored]) -> None:
        """Results of the first items of the frame; the worker has given the others back, or cannot read any."""
        frame = self._frames.get(worker, [])
        if not frame or len(results) > len(frame):
            raise ValueError("results that nobody asked for")
        self._frames[worker] = []
        for pending, scored in zip(frame, results, strict=False):
            pending.batch.settle(pending.place, scored)
        if results:
            mean = sum(one.seconds for one in results) / len(results)
            self._item_seconds += _SMOOTHING * (min(mean, 1.0) - self._item_seconds)
            self._queue.put_back(frame[len(results) :])
        else:
            self._set_apart(frame)
        worker.rest()
        if worker.killed_for is None:
            self._idle.append(worker)
        if self._queue:
            self._plan_dispatch()

    def _set_apart(self, frame: Sequence[Pending]) -> None:
        """Of a frame that could not be read: each item goes alone next, and one that was alone fails."""
        if len(frame) == 1:
            self._fail_unreadable(frame[0])
            return
        for pending in frame:
            pending.num_attempts = max(pending.num_attempts, 1)
        self._queue.put_back(frame)

    def _fail_unreadable(self, pending: Pending) -> None:
        self._fail(pending, Outcome.VERIFIER_ERROR, "not scored: no scoring process can read this item")

    def _bury(self, worker: WorkerProcess, frame: Sequence[Pending]) -> None:
        """Settles what a worker had in hand when it ended: one item was its end, the others are somebody else's."""
        timed_out = worker.killed_for == "timeout"
        at_fault = worker.late_position if timed_out else worker.position
        if worker.killed_for == "nonsense":
            at_fault = None  # what cannot be read may be of an earlier item than the one in hand when it was read
        again: list[Pending] = []
        for position, pending in enumerate(frame):
            pending.num_attempts += at_fault is None
            if position == at_fault and timed_out:
                detail = f"the scorer of this item did not finish within {self._deadline:g} s"
                self._fail(pending, Outcome.TIMEOUT, detail, self._deadline)
            elif position == at_fault:
                self._fail(pending, Outcome.VERIFIER_ERROR, f"the process that scored this item died: {worker.end}")
            elif self._closed or pending.num_attempts >= _MAX_ATTEMPTS:
                self._fail(pending, Outcome.VERIFIER_ERROR, f"not scored: the process of this item died: {worker.end}")
            else:
                again.append(pending)
        self._queue.put_back(again)
        self._plan_dispatch()

    def _fail(self, pending: Pending, outcome: Outcome, detail: str, seconds: float = 0.0) -> None:
        pending.batch.settle(pending.place, Scored(without_reward(pending.item, outcome, detail), seconds))
