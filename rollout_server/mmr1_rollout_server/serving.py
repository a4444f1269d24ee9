"""May a prompt be taken, made ready, sampled, published: what prompts ask of the policy that this server holds.

While a version is proved prompts are taken and made ready for it, and sampled with it once it has answered the
learner's probe, which is before the learner has compared. What they come to is held until it has: nothing that
unproven weights have sampled is published, or counted against its prompt. Which verb of a weight update leads from one
state to the next is `weights.py`'s part. Knows nothing of gRPC or vllm.
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
from mmr1_rollout_server.proof import Proof
from mmr1_rollout_server.states import Phase, State

# For so long prompts are kept ready while this server is paused: from the pause on, and again from the learner's probe.
# What takes longer may never end, for the learner leaves a server out without a word.
READY_SECONDS = 3.0
# And what was sampled while a version is proved so long, from the probe's answer on.
JUDGED_SECONDS = 10.0

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
        self._is_followed = False  # the pending version is not whole: its adapters come after it
        self._taken_until = self._kept_until = 0.0  # by the monotonic clock: prompts, while this server does not serve
        self._has_answered = False  # the learner's probe, with the pending version
        self._is_shut = False  # by Pause, while a version is proved
        self.proof = Proof()  # of what the engine holds
        self._changed = asyncio.Event()  # set, and replaced, at each change of state

    @property
    def serves(self) -> bool:
        return self.state is State.SERVES

    @property
    def takes(self) -> PolicyVersion | None:
        """The oldest version that a prompt which is taken now may be sampled under. None: take none.

        While a version is proved prompts are made ready for it, which is longer than anything else before their first
        token; `opened` is where they wait. Not for a learner's first one, nor for planted adapters: such a proof is
        long, and may find a fault.
        """
        if self.serves:
            return self.version
        proved = self._pending if self._is_held else None
        follows = proved and self.version and proved.incarnation == self.version.incarnation and not self._is_shut
        return proved if follows and not self._is_followed and time.monotonic() < self._taken_until else None

    @property
    def _is_held(self) -> bool:
        """Whether the engine has the pending version, and the learner has not resumed it."""
        return self.state is State.PAUSED and self._phase is Phase.FINISHED

    def probe_begun(self) -> None:
        """The learner's probe is ready for the engine: what is made ready from here on does not keep it waiting."""
        if self._is_held:
            self._has_answered = False  # it has the engine to itself
            self._taken_until = self._kept_until = time.monotonic() + READY_SECONDS

    def probe_answered(self) -> None:
        """The learner compares from here on. Sampling goes on meanwhile, for it rarely finds a fault."""
        if self._is_held:
            self._has_answered = True
            self.proof.expect(JUDGED_SECONDS)
            self._taken_until = self._kept_until = time.monotonic() + READY_SECONDS
            self._wake()
            if self._samples_ahead:
                _log.info("samples_ahead", version=str(self._pending))

    @property
    def _samples_ahead(self) -> bool:
        """Whether prompts may be sampled with the pending version."""
        return self._has_answered and not self.serves and self.takes is not None

    async def opened(self, *, ahead: bool = False) -> None:
        """Wait, with what is ready to be sampled, until this server serves; at once when it does.

        With `ahead` until it holds weights that have answered a probe: see `proof`. An update has deadlines of its own;
        what comes of it has not.

        Raises:
            NotServingError: it does not, and will not soon.
        """
        while not (self.serves or (ahead and self._samples_ahead)):
            left = None if self.state is State.UPDATING else self._kept_until - time.monotonic()
            if self.state not in (State.UPDATING, State.PAUSED) or (left is not None and left <= 0):
                raise NotServingError(self._closed())
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    def _closed(self) -> str:
        return f"this server is {self.state.value}: {self.detail or 'admission is closed'}"

    @contextmanager
    def sampling(self, *, probe: bool = False, ahead: bool = False) -> Iterator[PolicyVersion]:
        """Count one prompt as running; yields the version it is sampled under.

        A probe is admitted also while paused: with it the learner proves an update before it opens admission. So is,
        once the probe is answered, what comes `ahead` of the proof: who asks so waits for `proof`, as it is now, to be
        over before what was sampled counts.

        Raises:
            NotServingError: closed.
        """
        version = self.admitted(probe=probe, ahead=ahead)
        with self.admission.enter():
            yield version

    def admitted(self, *, probe: bool = False, ahead: bool = False) -> PolicyVersion:
        """What would be sampled now. Raises what `sampling` does."""
        version = self._pending if self._is_held else self.version
        early = (probe and self.state is State.PAUSED) or (ahead and self._samples_ahead)
        if version is None or not (self.serves or early):
            raise NotServingError(self._closed())
        return version

    def _become(self, state: State, detail: str) -> None:
        if self.state is State.DRAINING and state is not State.DRAINING:
            return  # nothing leads out of draining
        if state is State.PAUSED:
            self._kept_until = time.monotonic() + READY_SECONDS
        self.state, self.detail = state, detail
        self._wake()
        _log.info("state", state=state.value, version=str(self.version), detail=detail)
        self._on_change()

    def _wake(self) -> None:
        """Whoever waits looks again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
