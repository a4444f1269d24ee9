"""What ROLL has submitted: what runs, and what is finished and not yet too old. Bounded in number, bytes and age.

Of a finished one only the number and a bounded sentence are kept: what was read out of a response may be as long as it.

It knows no HTTP and no task; it runs whatever coroutine it is given.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..api import Outcome
from ..scoring import Overloaded, Scored

_MAX_FINISHED = 16_384
_KEPT_SECONDS = 900.0  # longer than the peer's client asks for a result
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Finished:
    """What is left of a verdict; `outcome` is None when there was none, and `detail` says why."""

    outcome: Outcome | None
    reward: float | None
    detail: str


class Submissions:
    """Belongs to one event loop. A finished one may be read several times: the answer to the client can be lost."""

    def __init__(
        self,
        *,
        max_running: int,
        max_bytes: int,
        max_finished: int = _MAX_FINISHED,
        kept_seconds: float = _KEPT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_running = max_running
        self._max_bytes = max_bytes
        self._max_finished = max_finished
        self._kept_seconds = kept_seconds
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        self._bytes = 0
        self._finished: OrderedDict[str, tuple[float, Finished]] = OrderedDict()  # with when it was; oldest first

    async def submit(self, run: Callable[[], Awaitable[Scored]], *, num_bytes: int, room_seconds: float) -> str:
        """Starts `run` and returns the id of its result. Raises Overloaded when no room is free in `room_seconds`."""
        deadline = self._clock() + room_seconds
        while len(self._running) >= self._max_running or self._bytes + num_bytes > self._max_bytes:
            if self._clock() >= deadline or num_bytes > self._max_bytes:
                raise Overloaded(f"{len(self._running)} submissions of {self._bytes} bytes are being scored already")
            await asyncio.sleep(_LOOK_SECONDS)
        name = secrets.token_urlsafe(16)
        self._bytes += num_bytes
        self._running[name] = asyncio.ensure_future(self._run(name, run, num_bytes))
        return name

    def is_running(self, name: str) -> bool:
        return name in self._running

    def result(self, name: str) -> Finished | None:
        """None for an id that is unknown or too old."""
        self._forget()
        finished = self._finished.get(name)
        return None if finished is None else finished[1]

    async def _run(self, name: str, run: Callable[[], Awaitable[Scored]], num_bytes: int) -> None:
        finished = Finished(None, None, "the server is shutting down")
        try:
            result = (await run()).result
            finished = Finished(result.outcome, result.reward, result.detail)
        except Overloaded as error:
            finished = Finished(None, None, str(error))
        finally:
            del self._running[name]
            self._bytes -= num_bytes
            self._finished[name] = (self._clock(), finished)
            self._forget()

    def _forget(self) -> None:
        oldest = self._clock() - self._kept_seconds
        while self._finished:
            name, (when, _) = next(iter(self._finished.items()))
            if when >= oldest and len(self._finished) <= self._max_finished:
                break
            del self._finished[name]
