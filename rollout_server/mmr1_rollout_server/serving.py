"""May a prompt be taken, made ready, sampled: what prompts ask of the policy that this server holds.

Which verb of a weight update leads from one state to the next is `weights.py`'s part. Knows nothing of gRPC or vllm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import structlog

from mmr1.records import PolicyVersion
from mmr1_rollout_server.admission import Admission
from mmr1_rollout_server.errors import NotServingError
from mmr1_rollout_server.states import Phase, State

# For so long prompts are kept ready while this server does not serve: while a version follows another and is proved.
# What takes longer may never end, for the learner leaves a server out without a word.
READY_SECONDS = 3.0

_log = structlog.get_logger(__name__)


class Serving:
    """The state of one server, and the prompts that it lets pass.

    Args:
        on_change: called after each change of state or version.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.state = State.STARTING
        self.detail = "the engine is loading"
        self.version: PolicyVersion | None = None  # committed
        self.admission = Admission()
        self._on_change = on_change
        self._phase = Phase.NONE
        self._pending: PolicyVersion | None = None
        self._ready_until = 0.0  # by the monotonic clock: prompts are taken for the pending version
        self._changed = asyncio.Event()  # set, and replaced, at each change of state

    @property
    def serves(self) -> bool:
        return self.state is State.SERVES

    @property
    def takes(self) -> PolicyVersion | None:
        """What a prompt that is taken now will be sampled under. None: take none.

        While a version is proved prompts are made ready for it, which is longer than anything else before their first
        token; `opened` is where they wait. Not for a learner's first one: the proof is long, and may find a fault.
        """
        if self.serves:
            return self.version
        proved = self._pending if self.state is State.PAUSED and self._phase is Phase.FINISHED else None
        follows = proved and self.version and proved.incarnation == self.version.incarnation
        return proved if follows and time.monotonic() < self._ready_until else None

    def probe_begun(self) -> None:
        """The learner's probe is with the engine: what is made ready from here on does not keep it waiting."""
        if self.state is State.PAUSED and self._phase is Phase.FINISHED:
            self._ready_until = time.monotonic() + READY_SECONDS

    async def opened(self) -> None:
        """Wait, with what is ready to be sampled, until this server serves; at once when it does.

        Raises:
            NotServingError: it does not, and will not soon.
        """
        end = time.monotonic() + READY_SECONDS
        while not self.serves:
            if self.state not in (State.UPDATING, State.PAUSED) or time.monotonic() >= end:
                raise NotServingError(self._closed())
            with suppress(TimeoutError):
                async with asyncio.timeout(end - time.monotonic()):
                    await self._changed.wait()

    def _closed(self) -> str:
        return f"this server is {self.state.value}: {self.detail or 'admission is closed'}"

    @contextmanager
    def sampling(self, *, probe: bool = False) -> Iterator[PolicyVersion]:
        """Count one prompt as running; yields the version it is sampled under.

        A probe is admitted also while paused: with it the learner proves an update before it opens admission.

        Raises:
            NotServingError: closed.
        """
        finished = self.state is State.PAUSED and self._phase is Phase.FINISHED
        version = self._pending if finished else self.version
        if version is None or not (self.serves or (probe and self.state is State.PAUSED)):
            raise NotServingError(self._closed())
        with self.admission.enter():
            yield version

    def _become(self, state: State, detail: str) -> None:
        if self.state is State.DRAINING and state is not State.DRAINING:
            return  # nothing leads out of draining
        self.state, self.detail = state, detail
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        _log.info("state", state=state.value, version=str(self.version), detail=detail)
        self._on_change()
