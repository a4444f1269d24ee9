"""The state machine of a weight update, with a scripted receiver in the engine's place: what is refused, what breaks,
what happens at a deadline. What the real engine does is tests/e2e/test_weight_update.py's subject."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mmr1.errors import WeightUpdateError
from mmr1.records import AdapterSpec, PolicyVersion
from mmr1_rollout_server.errors import DeadlinePassedError, NotServingError, VerbRefusedError
from mmr1_rollout_server.states import State
from mmr1_rollout_server.transfer import TransferPlan, WriteReport
from mmr1_rollout_server.weights import Policy

PLAN = TransferPlan("gloo", "127.0.0.1", 1, "p", 1, 2, (), 1)
ADAPTERS = replace(PLAN, adapter=AdapterSpec(4, 8.0, ()))


class ScriptedReceiver:
    """Answers at once, unless told to fail or to hang in one call."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing = ""
        self.hanging = ""
        self.unwritten: tuple[str, ...] = ()

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.hanging:
            await asyncio.Event().wait()
        if name == self.failing:
            raise WeightUpdateError(f"{name} failed")

    async def init_transfer(self, plan: TransferPlan, deadline_seconds: float) -> None:
        await self._called("init")

    async def start_update(self, *, adapter_only: bool = False) -> None:
        self.adapter_only = adapter_only
        await self._called("start")

    async def receive_update(self, deadline_seconds: float) -> list[tuple[str, int]]:
        await self._called("receive")
        return [("a", 1)]

    async def finish_update(self) -> WriteReport:
        await self._called("finish")
        return WriteReport(2, self.unwritten, 1)

    async def abort_update(self) -> None:
        await self._called("abort")


class Held:
    """A policy, its receiver, and what it reported."""

    def __init__(self) -> None:
        self.receiver = ScriptedReceiver()
        self.stuck: list[str] = []
        self.policy = Policy("run", on_change=lambda: None, on_stuck=self.stuck.append, stuck_seconds=0.1)
        self.policy.engine_ready(self.receiver)

    async def update(
        self, number: int, incarnation: int = 1, *, resume: bool = True, adapter_only: bool = False
    ) -> None:
        version = PolicyVersion(incarnation, number)
        await self.policy.start("run", incarnation, version, 1.0, adapter_only=adapter_only)
        await self.policy.update("run", incarnation, version, 1.0)
        await self.policy.finish("run", incarnation, version, 1.0)
        if resume:
            await self.policy.resume("run", incarnation, version)

    async def init(self, incarnation: int = 1, deadline_seconds: float = 1.0, plan: TransferPlan = PLAN) -> None:
        await self.policy.init_transfer("run", incarnation, plan, deadline_seconds)


@pytest.fixture
async def held() -> Held:
    return Held()


async def test_nothing_is_sampled_before_a_version_is_committed(held: Held) -> None:
    assert held.policy.state is State.ACCEPTS_WEIGHTS
    for probe in (False, True):
        with pytest.raises(NotServingError), held.policy.sampling(probe=probe):
            pass
    await held.init()
    await held.update(1, resume=False)
    with pytest.raises(NotServingError, match="has not resumed"), held.policy.sampling():
        pass
    with held.policy.sampling(probe=True) as version:
        assert version == (1, 1)
    assert held.policy.version is None
    await held.policy.resume("run", 1, PolicyVersion(1, 1))
    with held.policy.sampling() as version:
        assert version == (1, 1)


async def test_a_models_own_weights_are_served_as_no_learners_version_and_stay(held: Held) -> None:
    """For evaluation. A learner that comes by must not change what is being measured."""
    held.policy.serve_base()
    with held.policy.sampling() as version:
        assert version == (0, 0)
    for incarnation in (0, 1):
        with pytest.raises(VerbRefusedError, match="serves its model's own weights, for evaluation"):
            await held.init(incarnation)
        with pytest.raises(VerbRefusedError):
            await held.policy.start("run", incarnation, PolicyVersion(incarnation, 1), 1.0)
    assert held.policy.state is State.SERVES and held.receiver.calls == []
    held.policy.drain()
    with pytest.raises(NotServingError), held.policy.sampling():
        pass


async def test_start_waits_for_what_runs_and_admits_no_more(held: Held) -> None:
    await held.init()
    await held.update(1)
    with held.policy.sampling():
        starting = asyncio.create_task(held.policy.start("run", 1, PolicyVersion(1, 2), 5.0))
        await asyncio.sleep(0.05)
        assert held.policy.state is State.UPDATING and not starting.done()
        with pytest.raises(NotServingError), held.policy.sampling():
            pass
        assert held.receiver.calls.count("start") == 1  # the first update's
    assert await starting >= 0.05


async def test_a_start_that_cannot_empty_the_engine_changes_nothing(held: Held) -> None:
    await held.init()
    await held.update(1)
    with held.policy.sampling():
        with pytest.raises(DeadlinePassedError, match="1 prompts still run"):
            await held.policy.start("run", 1, PolicyVersion(1, 2), 0.05)
        assert held.policy.state is State.SERVES
        with pytest.raises(DeadlinePassedError):
            await held.policy.pause("run", 1, 0.05)
        assert held.policy.serves


@pytest.mark.parametrize("call", ["start", "receive", "finish"])
async def test_a_failed_phase_breaks_the_server_until_a_full_update(held: Held, call: str) -> None:
    await held.init()
    await held.update(1)
    held.receiver.failing = call
    with pytest.raises(WeightUpdateError, match=f"{call} failed"):
        await held.update(2)
    assert (held.policy.state, held.policy.version) == (State.BROKEN, None)
    assert held.receiver.calls[-1] == "abort"
    for probe in (False, True):
        with pytest.raises(NotServingError, match="broken"), held.policy.sampling(probe=probe):
            pass
    for verb in (held.policy.resume("run", 1, PolicyVersion(1, 1)), held.policy.pause("run", 1, 1.0)):
        with pytest.raises(VerbRefusedError):
            await verb
    with pytest.raises(VerbRefusedError, match="InitWeightTransfer first"):
        await held.update(2)
    held.receiver.failing = ""
    await held.init()
    await held.update(2)
    assert held.policy.version == (1, 2)


async def test_parameters_that_were_not_written_break_the_server(held: Held) -> None:
    await held.init()
    held.receiver.unwritten = ("lm_head.weight",)
    with pytest.raises(WeightUpdateError, match=r"1 of 2 parameters were not written: lm_head\.weight"):
        await held.update(1)
    assert held.policy.state is State.BROKEN


async def test_an_engine_that_does_not_come_back_ends_the_process(held: Held) -> None:
    await held.init()
    await held.policy.start("run", 1, PolicyVersion(1, 1), 0.1)
    held.receiver.hanging = "receive"
    with pytest.raises(WeightUpdateError, match="stuck"):
        await held.policy.update("run", 1, PolicyVersion(1, 1), 0.1)
    assert held.stuck and held.policy.state is State.BROKEN


async def test_a_learner_that_vanishes_between_verbs_breaks_the_server(held: Held) -> None:
    await held.init()
    await held.policy.start("run", 1, PolicyVersion(1, 1), 0.05)
    await asyncio.sleep(0.2)
    assert held.policy.state is State.BROKEN
    assert "nothing followed StartWeightUpdate to 1.1" in held.policy.detail


async def test_a_finished_update_may_be_proved_for_as_long_as_it_takes(held: Held) -> None:
    await held.init()
    version = PolicyVersion(1, 1)
    await held.policy.start("run", 1, version, 0.05)
    await held.policy.update("run", 1, version, 0.05)
    await held.policy.finish("run", 1, version, 0.05)
    await asyncio.sleep(0.2)
    assert held.policy.state is State.PAUSED


async def test_writers_are_checked(held: Held) -> None:
    await held.init(incarnation=3)
    for run, incarnation, reason in (
        ("other", 3, "belongs to run"),
        ("run", 2, "superseded by 3"),
        ("run", 4, "has not sent InitWeightTransfer"),
    ):
        with pytest.raises(VerbRefusedError, match=reason):
            await held.policy.start(run, incarnation, PolicyVersion(incarnation, 1), 1.0)
    with pytest.raises(VerbRefusedError, match="superseded"):
        await held.init(incarnation=2)


async def test_versions_never_go_back_and_belong_to_their_writer(held: Held) -> None:
    await held.init()
    await held.update(2)
    for version in (PolicyVersion(1, 1), PolicyVersion(2, 9)):
        with pytest.raises(VerbRefusedError, match="cannot follow"):
            await held.policy.start("run", 1, version, 1.0)
    assert held.policy.serves
    await held.policy.start("run", 1, PolicyVersion(1, 5), 1.0)
    with pytest.raises(VerbRefusedError, match=r"version 1\.6 during the update to 1\.5"):
        await held.policy.update("run", 1, PolicyVersion(1, 6), 1.0)


async def test_a_new_incarnation_closes_admission(held: Held) -> None:
    await held.init()
    await held.update(7)
    await held.init(incarnation=2)
    assert held.policy.state is State.ACCEPTS_WEIGHTS
    with pytest.raises(NotServingError, match="incarnation 2"), held.policy.sampling():
        pass
    await held.update(1, incarnation=2)
    assert held.policy.version == (2, 1)


async def test_a_new_learner_waits_for_the_verb_of_the_one_it_replaces(held: Held) -> None:
    await held.init()
    await held.policy.start("run", 1, PolicyVersion(1, 1), 1.0)
    held.receiver.hanging = "receive"
    receiving = asyncio.create_task(held.policy.update("run", 1, PolicyVersion(1, 1), 0.1))
    await asyncio.sleep(0.02)
    with pytest.raises(VerbRefusedError, match="another verb"):
        await held.policy.finish("run", 1, PolicyVersion(1, 1), 1.0)
    await held.init(incarnation=2)
    with pytest.raises(WeightUpdateError):
        await receiving
    await asyncio.sleep(0)
    held.receiver.hanging = ""
    await held.update(1, incarnation=2)
    assert held.policy.serves


async def test_a_new_group_gives_up_the_update_under_way(held: Held) -> None:
    await held.init()
    await held.policy.start("run", 1, PolicyVersion(1, 1), 1.0)
    await held.init()
    assert held.policy.state is State.BROKEN
    assert held.receiver.calls == ["init", "start", "abort", "init"]
    await held.update(1)
    assert held.policy.serves


async def test_a_failed_init_leaves_the_weights_alone(held: Held) -> None:
    await held.init()
    await held.update(1)
    held.receiver.failing = "init"
    with pytest.raises(WeightUpdateError):
        await held.init()
    assert held.policy.serves
    with pytest.raises(VerbRefusedError, match="InitWeightTransfer first"):
        await held.policy.start("run", 1, PolicyVersion(1, 2), 1.0)


async def test_pause_and_resume_without_an_update(held: Held) -> None:
    await held.init()
    await held.update(1)
    await held.policy.pause("run", 1, 1.0)
    assert await held.policy.pause("run", 1, 1.0) == 0.0
    with pytest.raises(VerbRefusedError, match=r"names version 1\.9, but this server holds 1\.1"):
        await held.policy.resume("run", 1, PolicyVersion(1, 9))
    await held.policy.resume("run", 1, PolicyVersion(1, 1))
    assert held.policy.serves


async def test_nothing_leads_out_of_draining(held: Held) -> None:
    await held.init()
    await held.update(1)
    held.policy.drain()
    with pytest.raises(NotServingError, match="shutting down"), held.policy.sampling():
        pass
    with pytest.raises(VerbRefusedError, match="shutting down"):
        await held.init(incarnation=5)


async def test_adapters_alone_follow_the_base_weights_of_their_group(held: Held) -> None:
    await held.init(plan=ADAPTERS)
    with pytest.raises(VerbRefusedError, match="StartAdapterUpdate before the group's base weights"):
        await held.update(1, adapter_only=True)
    assert held.policy.state is State.ACCEPTS_WEIGHTS and held.receiver.calls == ["init"]
    await held.update(1, resume=False)
    assert not held.receiver.adapter_only
    await held.update(1, adapter_only=True)
    assert held.receiver.adapter_only and held.policy.version == (1, 1)
    await held.init(plan=ADAPTERS)
    with pytest.raises(VerbRefusedError, match="before the group's base weights"):
        await held.update(2, adapter_only=True)


async def test_after_a_failure_adapters_alone_are_not_enough(held: Held) -> None:
    await held.init(plan=ADAPTERS)
    await held.update(1)
    held.receiver.unwritten = ("q_proj.lora_A.weight",)
    with pytest.raises(WeightUpdateError, match=r"not written: q_proj\.lora_A\.weight"):
        await held.update(2, adapter_only=True)
    assert (held.policy.state, held.policy.version) == (State.BROKEN, None)
    held.receiver.unwritten = ()
    await held.init(plan=ADAPTERS)
    with pytest.raises(VerbRefusedError, match="before the group's base weights"):
        await held.update(2, adapter_only=True)
    await held.update(2)
    assert held.policy.serves


async def test_a_group_without_adapters_takes_none_alone(held: Held) -> None:
    await held.init()
    await held.update(1)
    with pytest.raises(VerbRefusedError, match="before the group's base weights"):
        await held.update(2, adapter_only=True)
    assert held.policy.serves
