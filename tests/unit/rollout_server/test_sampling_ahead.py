"""Once weights have answered the learner's probe they sample; nobody hears of it before they are proved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mmr1.records import PolicyVersion
from mmr1_rollout_server import serving
from mmr1_rollout_server.errors import DeadlinePassedError, EngineDiedError, NotServingError, PromptError
from mmr1_rollout_server.proof import Proof
from mmr1_rollout_server.weights import Policy
from tests.unit.rollout_server.test_ready_prompts import ask_probe, collected, expire, hold, num_held, proving, resume
from tests.unit.rollout_server.test_weights import ADAPTERS, Held
from tests.unit.rollout_server.test_worker import PLAN, RUN, Bench, reward_server, until, until_async, working


@pytest.fixture
async def held() -> Held:
    return Held()


@pytest.fixture
async def bench(redis_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(redis_url, tmp_path, reward_server())
    yield bench
    await bench.redis.aclose()


def samples_ahead(policy: Policy) -> bool:
    try:
        with policy.sampling(ahead=True):
            return not policy.serves
    except NotServingError:
        return False


async def answered(bench: Bench, number: int) -> PolicyVersion:
    """The server holds a version that has answered, and the learner compares."""
    version = await hold(bench, number)
    bench.policy.probe_answered()
    return version


async def send_again(bench: Bench, version: PolicyVersion) -> None:
    """The proof has failed: the same version comes once more, in a fresh group, and is not asked yet."""
    arguments: Any = (RUN, bench.incarnation)
    await bench.policy.init_transfer(*arguments, PLAN, 1.0)
    await bench.policy.start(*arguments, version, 5.0)
    await bench.policy.update(*arguments, version, 5.0)
    await bench.policy.finish(*arguments, version, 5.0)


async def test_sampling_begins_with_the_probes_answer(held: Held) -> None:
    await proving(held)
    waiting = asyncio.create_task(held.policy.opened(ahead=True))
    await asyncio.sleep(0.02)
    assert not waiting.done() and not samples_ahead(held.policy), "the probe has the engine to itself"
    held.policy.probe_answered()
    await asyncio.wait_for(waiting, 1)
    with held.policy.sampling(ahead=True) as version:
        assert version == (1, 2) and held.policy.version == (1, 1)
    with pytest.raises(NotServingError), held.policy.sampling():
        pass  # whoever will not wait for the proof
    direct = asyncio.create_task(held.policy.opened())
    await asyncio.sleep(0.02)
    assert not direct.done()
    await held.policy.resume("run", 1, PolicyVersion(1, 2))
    await asyncio.wait_for(direct, 1)
    await held.policy.proof.over()


@pytest.mark.parametrize("how", ["first", "new learner", "base of adapters", "paused alone", "too late", "next update"])
async def test_when_nothing_is_sampled_ahead(held: Held, how: str) -> None:
    if how == "base of adapters":
        await held.init(plan=ADAPTERS)
        await held.update(1, resume=False)
        await held.update(1, adapter_only=True)
        await held.update(2, resume=False)
    elif how == "first":
        await held.init()
        await held.update(1, resume=False)
    else:
        await proving(held)
    if how == "new learner":
        await held.policy.resume("run", 1, PolicyVersion(1, 2))
        await held.init(incarnation=2)
        await held.update(3, incarnation=2, resume=False)
    elif how == "paused alone":
        await held.policy.resume("run", 1, PolicyVersion(1, 2))
        await held.policy.pause("run", 1, 1.0)
    ask_probe(held.policy)
    held.policy.probe_answered()
    if how == "too late":
        assert samples_ahead(held.policy)
        expire(held.policy)
    elif how == "next update":
        assert samples_ahead(held.policy)
        await held.update(3, resume=False)
    assert not samples_ahead(held.policy)


async def test_a_proof_is_settled_once() -> None:
    for first in (True, False):
        proof = Proof()
        with pytest.raises(NotServingError, match="does not say"):
            await proof.over()
        proof.expect(0.02)
        waiting = [asyncio.create_task(proof.over()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        for task in waiting:
            with pytest.raises(NotServingError, match="does not say"):
                await task
        proof.settle(first)
        proof.settle(not first)
        if first:
            await proof.over()
        else:
            with pytest.raises(NotServingError, match="others came over them"):
                await proof.over()


@pytest.mark.parametrize("how", ["another version", "the same again", "a new learner", "the end", "a failure"])
async def test_what_ends_a_proof(held: Held, how: str) -> None:
    await proving(held)
    held.policy.probe_answered()
    proof, arguments = held.policy.proof, ("run", 1)
    if how == "another version":
        await held.update(3)
    elif how == "the same again":
        await held.update(2)
        await held.policy.proof.over()
    elif how == "a new learner":
        await held.init(incarnation=2)
    elif how == "the end":
        held.policy.drain()
    else:
        await held.policy.start(*arguments, PolicyVersion(1, 3), 1.0)
        await held.init()
    with pytest.raises(NotServingError, match="not proved"):
        await proof.over()


async def test_a_pause_waits_for_what_is_sampled_ahead(held: Held) -> None:
    await proving(held)
    held.policy.probe_answered()
    with held.policy.sampling(ahead=True):
        with pytest.raises(DeadlinePassedError):
            await held.policy.pause("run", 1, 0.02)
        assert not samples_ahead(held.policy), "and lets no more begin"
    assert await held.policy.pause("run", 1, 0.02) == 0.0
    ask_probe(held.policy)
    held.policy.probe_answered()
    assert not samples_ahead(held.policy) and held.policy.takes is None, "nor after another probe"
    await held.policy.resume("run", 1, PolicyVersion(1, 2))
    await held.update(3, resume=False)
    ask_probe(held.policy)
    held.policy.probe_answered()
    assert samples_ahead(held.policy)


async def test_another_probe_has_the_engine_to_itself_too(held: Held) -> None:
    await proving(held)
    held.policy.probe_answered()
    ask_probe(held.policy)
    assert not samples_ahead(held.policy)
    held.policy.probe_answered()
    assert samples_ahead(held.policy)


async def test_groups_are_sampled_ahead_and_published_when_they_are_proved(bench: Bench) -> None:
    async with working(bench):
        await bench.serve()
        version = await answered(bench, 2)
        bench.feed(0, 1, 2)
        await until(lambda: bench.sampler.num_started == 3 and not bench.sampler.running)
        await asyncio.sleep(0.2)
        assert not bench.queue.read(10) and num_held(bench) == 3
        await resume(bench, version)
        groups = await collected(bench, 3)
    assert {group.oldest_version for group in groups} == {version}
    assert bench.sampler.num_started == 3 and bench.queue.ledger().balanced


async def test_what_unproven_weights_have_sampled_is_sampled_again(bench: Bench) -> None:
    """Also when the next try sends the very same version; and no death is counted."""
    async with working(bench):
        await bench.serve()
        version = await answered(bench, 2)
        bench.feed(0, 1)
        await until(lambda: bench.sampler.num_started == 2 and not bench.sampler.running)
        await send_again(bench, version)
        await until(lambda: num_held(bench) == 0)
        assert not bench.queue.read(10) and bench.sampler.num_started == 2
        ask_probe(bench.policy)
        bench.policy.probe_answered()
        await until(lambda: bench.sampler.num_started == 4 and not bench.sampler.running)
        assert not bench.queue.read(10)
        await resume(bench, version)
        groups = await collected(bench, 2)
    assert sorted(group.prompt.id.position for group in groups) == [0, 1]
    assert bench.queue.ledger().balanced


async def test_the_next_try_waits_for_what_runs_and_throws_it_away(bench: Bench) -> None:
    bench.sampler.release.clear()
    async with working(bench):
        await bench.serve()
        version = await answered(bench, 2)
        bench.feed(0)
        await until(lambda: bench.sampler.running == [0])
        again = asyncio.create_task(send_again(bench, version))
        await asyncio.sleep(0.1)
        assert not again.done(), "weights are not written under what samples"
        bench.sampler.release.set()
        await asyncio.wait_for(again, 5)
        await until(lambda: num_held(bench) == 0)
        assert not bench.queue.read(10)


@pytest.mark.parametrize("error", [RuntimeError("garbage"), PromptError("garbage")])
@pytest.mark.parametrize("is_proved", [True, False])
async def test_a_failure_counts_when_the_weights_are_proved(bench: Bench, error: Exception, is_proved: bool) -> None:
    bench.sampler.failing = {0: error}
    async with working(bench):
        await bench.serve()
        version = await answered(bench, 2)
        bench.feed(0)
        await until(lambda: bench.sampler.num_started == 1 and not bench.sampler.running)
        await asyncio.sleep(0.2)
        assert num_held(bench) == 1 and bench.sampler.num_started == 1 and not bench.queue.ledger().dead
        if is_proved:
            await resume(bench, version)
            await until(lambda: sum(bench.queue.ledger().dead.values()) == 1)
            return
        bench.sampler.failing = {}
        await send_again(bench, version)
        await resume(bench, version)
        (group,) = await collected(bench, 1)
    assert group.oldest_version == version and not bench.queue.ledger().dead


async def test_an_engine_that_dies_ahead_of_a_proof_has_died(bench: Bench) -> None:
    """Its prompt keeps its claim: whoever takes it over counts this death."""
    bench.sampler.failing = {0: EngineDiedError("gone")}
    async with working(bench):
        await bench.serve()
        await answered(bench, 2)
        bench.feed(0)
        await until(lambda: bench.sampler.num_started == 1 and not bench.sampler.running)
        await asyncio.sleep(0.1)
        assert num_held(bench) == 1 and bench.policy.takes is not None
        bench.feed(1)
        await asyncio.sleep(0.2)
        assert bench.sampler.num_started == 1


@pytest.mark.parametrize("how", ["left out", "told to stop"])
async def test_without_a_word_of_the_learner_prompts_are_given_back(
    bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "left out":
        monkeypatch.setattr(serving, "JUDGED_SECONDS", 0.3)
    async with working(bench):
        await bench.serve()
        await answered(bench, 2)
        bench.feed(0)
        await until(lambda: bench.sampler.num_started == 1 and not bench.sampler.running)
        other = bench.consumer("another")
        await other.register("elsewhere", "serves", PolicyVersion(bench.incarnation, 1), 30)
        if how == "told to stop":
            bench.policy.drain()
        else:
            expire(bench.policy)
        await until(lambda: num_held(bench) == 0)
        (taken,) = await until_async(lambda: other.take(2, PolicyVersion(bench.incarnation, 1), 1))
        assert taken.num_deliveries == 1 and not bench.queue.read(10)
