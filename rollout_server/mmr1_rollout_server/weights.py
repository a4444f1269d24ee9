"""How this server comes to hold a policy version: the server's side of a weight update.

    STARTING -> ACCEPTS_WEIGHTS -> UPDATING -> PAUSED -> SERVES        (Start, Update and Finish, Resume)
    UPDATING -> BROKEN when a phase fails or its deadline passes; only a full update leads out of it.

Verbs run one at a time. Each is refused, with nothing changed, when it is out of order, of an older learner or of
another run. This file knows nothing of gRPC or vllm; the engine is what `transfer.WeightReceiver` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog

from mmr1.errors import WeightUpdateError
from mmr1.records import PolicyVersion
from mmr1_rollout_server.errors import DeadlinePassedError, VerbRefusedError
from mmr1_rollout_server.proof import Proof
from mmr1_rollout_server.serving import Serving
from mmr1_rollout_server.states import CLOSED, Phase, State
from mmr1_rollout_server.transfer import TransferPlan, WeightReceiver, WriteReport
from mmr1_rollout_server.turns import Turns

# The transfer group gives up at the deadline by itself; an engine silent for this much longer is stuck in it.
STUCK_SECONDS = 10.0

# What the model's folder holds. No learner's version: their incarnations begin with 1.
BASE = PolicyVersion(0, 0)

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class Policy(Serving):
    """The policy this server holds.

    Args:
        run: verbs of other runs are refused.
        on_change: called after each change of state or version.
        on_stuck: called with a reason when the engine does not come back; the process must end.
    """

    def __init__(
        self,
        run: str,
        *,
        on_change: Callable[[], None],
        on_stuck: Callable[[str], None],
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        super().__init__(on_change)
        self._on_stuck = on_stuck
        self._stuck_seconds = stuck_seconds
        self._engine: WeightReceiver | None = None
        self._takes_none: str | None = None  # why no learner is heard
        self._turns = Turns(run, lambda: self._takes_none or CLOSED.get(self.state))
        self._group_ready = False
        self._with_adapter = False  # the group's updates are of adapters
        self._has_base = False  # and a full one has brought what they belong to
        self._watchdog: asyncio.Task[None] | None = None

    def engine_ready(self, engine: WeightReceiver) -> None:
        self._engine = engine
        self._become(State.ACCEPTS_WEIGHTS, "holds no version of this run's learner yet")

    def serve_base(self) -> None:
        """For evaluation: open admission with the weights that the engine has loaded, and take no others."""
        self._takes_none = "this server serves its model's own weights, for evaluation, and takes no others"
        self.version = BASE
        self.proof.settle(True)
        self._become(State.SERVES, "")

    def drain(self) -> None:
        """Close admission for good."""
        self.proof.settle(False)  # Resume is not heard any more
        self._become(State.DRAINING, "this server is shutting down")

    # -- the verbs -----------------------------------------------------------------------------------------------

    async def pause(self, run: str, incarnation: int, deadline_seconds: float) -> float:
        """Close admission and wait until nothing runs; returns the seconds waited.

        Raises:
            VerbRefusedError, DeadlinePassedError: admission is as before; while a version is proved nothing more is
                sampled ahead of the proof.
        """
        async with self._turns.verb("Pause", run, incarnation):
            if self.state is State.PAUSED:
                self._is_shut = True
                return await self.admission.wait_idle(deadline_seconds) if self.admission.num_running else 0.0
            self._require("Pause", self.serves)
            return await self._close_admission(deadline_seconds, "paused by the learner")

    async def resume(self, run: str, incarnation: int, version: PolicyVersion) -> None:
        """Commit `version`, which must be what the engine holds, and open admission."""
        async with self._turns.verb("Resume", run, incarnation):
            self._require("Resume", self.state is State.PAUSED)
            held = self._pending if self._phase is Phase.FINISHED else self.version
            if version != held:
                raise VerbRefusedError(f"Resume names version {version}, but this server holds {held}")
            self.proof.settle(True)
            self._forget_update()
            self.version = version
            self._become(State.SERVES, "")

    async def init_transfer(self, run: str, incarnation: int, plan: TransferPlan, deadline_seconds: float) -> None:
        """Join the transfer group. The first verb of a new learner: from here on older ones are refused.

        Raises:
            VerbRefusedError: nothing changed.
            WeightUpdateError: the group did not form in time; the weights are untouched.
        """
        async with self._turns.verb(
            "InitWeightTransfer", run, incarnation, is_init=True, wait_seconds=deadline_seconds
        ):
            if self._phase in (Phase.STARTED, Phase.RECEIVED):
                await self._break(f"the update to {self._pending} was given up for a new transfer group")
            if incarnation > self._turns.incarnation:
                self._turns.incarnation = incarnation
                if self.state in (State.SERVES, State.PAUSED):
                    self._forget_update()
                    self._become(State.ACCEPTS_WEIGHTS, f"waits for the first version of incarnation {incarnation}")
            self._group_ready = self._has_base = False
            await self._bounded(
                self._receiver.init_transfer(plan, deadline_seconds), deadline_seconds, "joining the group"
            )
            self._group_ready = True
            self._with_adapter = plan.adapter is not None

    async def start(
        self,
        run: str,
        incarnation: int,
        version: PolicyVersion,
        deadline_seconds: float,
        *,
        adapter_only: bool = False,
    ) -> float:
        """Close admission, wait until nothing runs, make the model writable; returns the seconds waited.

        With `adapter_only` the base model's weights stay, and must be those of this group's last full update.

        Raises:
            VerbRefusedError, DeadlinePassedError: nothing changed, admission is as before.
            WeightUpdateError: this server is broken now.
        """
        name = "StartAdapterUpdate" if adapter_only else "StartWeightUpdate"
        async with self._turns.verb(name, run, incarnation):
            self._require(name, self.state is not State.UPDATING)
            if not self._group_ready:
                raise VerbRefusedError(f"{name} without a transfer group; send InitWeightTransfer first")
            if adapter_only and not self._has_base:
                raise VerbRefusedError(f"{name} before the group's base weights; send StartWeightUpdate first")
            if version.incarnation != incarnation or (self.version and version < self.version):
                raise VerbRefusedError(
                    f"version {version} cannot follow {self.version} under {incarnation}: versions never go back"
                )
            waited = await self._close_admission(deadline_seconds, f"updating to {version}", State.UPDATING)
            self._forget_update()  # one that was not proved
            self._pending = version
            self._is_followed = self._with_adapter and not adapter_only
            async with self._breaking():
                starting = self._receiver.start_update(adapter_only=adapter_only)
                await self._bounded(starting, deadline_seconds, "starting the update")
            self._advance(Phase.STARTED, deadline_seconds)
            return waited

    async def update(
        self, run: str, incarnation: int, version: PolicyVersion, deadline_seconds: float
    ) -> list[tuple[str, int]]:
        """Receive every tensor; returns (name, fingerprint) in order of arrival.

        Raises:
            VerbRefusedError: nothing changed.
            WeightUpdateError: this server is broken now.
        """
        async with self._turns.verb("UpdateWeights", run, incarnation):
            self._require_phase("UpdateWeights", Phase.STARTED, version)
            async with self._breaking():
                receiving = self._receiver.receive_update(deadline_seconds)
                fingerprints = await self._bounded(receiving, deadline_seconds, "receiving the weights")
            self._advance(Phase.RECEIVED, deadline_seconds)
            return fingerprints

    async def finish(self, run: str, incarnation: int, version: PolicyVersion, deadline_seconds: float) -> WriteReport:
        """Complete the model. Probes are answered from here on, and what prompts come to counts after Resume.

        Raises:
            VerbRefusedError: nothing changed.
            WeightUpdateError: this server is broken now, for instance because parameters kept old values.
        """
        async with self._turns.verb("FinishWeightUpdate", run, incarnation):
            self._require_phase("FinishWeightUpdate", Phase.RECEIVED, version)
            async with self._breaking():
                report = await self._bounded(self._receiver.finish_update(), deadline_seconds, "finishing the update")
                if report.unwritten:
                    raise WeightUpdateError(
                        f"{len(report.unwritten)} of {report.num_parameters} parameters were not written: "
                        f"{', '.join(report.unwritten[:5])}"
                    )
            self._has_base = self._with_adapter
            self._stop_watchdog()
            self._phase, self.proof = Phase.FINISHED, Proof()
            self._become(State.PAUSED, f"holds {version}, which the learner has not resumed")
            return report

    # -- order ---------------------------------------------------------------------------------------------------

    def _require(self, verb: str, allowed: bool) -> None:
        if not allowed:
            raise VerbRefusedError(f"{verb} does not follow {self.state.value} ({self._phase.value})")

    def _require_phase(self, verb: str, phase: Phase, version: PolicyVersion) -> None:
        self._require(verb, self.state is State.UPDATING and self._phase is phase)
        if version != self._pending:
            raise VerbRefusedError(f"{verb} of version {version} during the update to {self._pending}")

    # -- deadlines and failures ----------------------------------------------------------------------------------

    @property
    def _receiver(self) -> WeightReceiver:
        if self._engine is None:
            raise VerbRefusedError("the engine is still loading")
        return self._engine

    async def _close_admission(self, deadline_seconds: float, why: str, state: State = State.PAUSED) -> float:
        before = self.state, self.detail
        self._become(state, why)
        try:
            return await self.admission.wait_idle(deadline_seconds)
        except DeadlinePassedError:
            if self.state is state:
                self._become(*before)
            raise

    async def _bounded(self, call: Awaitable[_T], deadline_seconds: float, doing: str) -> _T:
        """The engine's own deadline comes first; this one ends the process, because nothing else frees the engine."""
        try:
            async with asyncio.timeout(deadline_seconds + self._stuck_seconds):
                return await call
        except TimeoutError:
            reason = (
                f"{doing}: the engine is stuck {self._stuck_seconds:g} s past its deadline of {deadline_seconds:g} s"
            )
            self._on_stuck(reason)
            raise WeightUpdateError(reason) from None

    @asynccontextmanager
    async def _breaking(self) -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:
            await self._break(str(error))
            raise

    async def _break(self, reason: str) -> None:
        """Serve nothing until a full update has completed. A group that failed is never used again."""
        _log.error("weight_update_failed", version=str(self._pending), reason=reason)
        self._forget_update()
        self._group_ready = self._has_base = False
        self.version = None
        if self.state is not State.DRAINING:
            self._become(State.BROKEN, reason)
        await self._bounded(self._receiver.abort_update(), self._stuck_seconds, "aborting the update")

    def _advance(self, phase: Phase, deadline_seconds: float) -> None:
        self._stop_watchdog()
        self._phase = phase
        self._watchdog = asyncio.create_task(self._watch(phase, self._pending, deadline_seconds))

    async def _watch(self, phase: Phase, version: PolicyVersion | None, deadline_seconds: float) -> None:
        """The learner may die between two verbs; then nobody is left to say that the update failed."""
        await asyncio.sleep(deadline_seconds)
        async with self._turns.lock:
            if self._phase is phase and self._pending == version:
                self._watchdog = None  # this task; it must not cancel itself
                await self._break(f"nothing followed {phase.value} to {version} within {deadline_seconds:g} s")

    def _forget_update(self) -> None:
        self._stop_watchdog()
        self._phase, self._pending = Phase.NONE, None
        self._taken_until, self._has_answered, self._is_shut = 0.0, False, False
        self.proof.settle(False)

    def _stop_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
