"""While a version is proved its prompts are taken and made ready. None is sampled before, none is kept for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mmr1.errors import WeightUpdateError
from mmr1.records import Group, PolicyVersion
from mmr1_rollout_server import serving
from mmr1_rollout_server.errors import EngineDiedError, NotServingError
from mmr1_rollout_server.weights import Policy
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


def ask_probe(policy: Policy) -> None:
    """As the servicer does."""
    policy.probe_begun()
    with policy.sampling(probe=True):
        pass


def expire(policy: Policy) -> None:
    """The time is over in which a version may be proved."""
    policy._taken_until = policy._kept_until = 0.0
    policy._wake()


async def proving(held: Held, number: int = 2) -> None:
    """Serves version 1, and holds `number`, which is being proved."""
    await held.init()
    await held.update(1)
    await held.update(number, resume=False)
    ask_probe(held.policy)


async def test_prompts_are_taken_for_a_version_once_its_probe_is_under_way(held: Held) -> None:
    assert held.policy.takes is None
    await held.init()
    await held.update(1, resume=False)
    ask_probe(held.policy)
    assert held.policy.takes is None, "a learner's first version is proved for long, and may not be"
    await held.policy.resume("run", 1, PolicyVersion(1, 1))
    assert held.policy.takes == (1, 1)
    await held.update(2, resume=False)
    assert held.policy.takes is None, "the probe would wait for them"
    ask_probe(held.policy)
    assert held.policy.takes == (1, 2) and held.policy.version == (1, 1)
    with pytest.raises(NotServingError), held.policy.sampling():
        pass


async def test_none_are_taken_for_a_new_learners_first_version(held: Held) -> None:
    await proving(held)
    await held.policy.resume("run", 1, PolicyVersion(1, 2))
    await held.init(incarnation=2)
    await held.update(3, incarnation=2, resume=False)
    ask_probe(held.policy)
    assert held.policy.version == (1, 2) and held.policy.takes is None


@pytest.mark.parametrize("how", ["another version", "paused", "a new learner", "in time"])
async def test_none_are_taken_when_the_proof_is_over(held: Held, how: str) -> None:
    await proving(held)
    assert held.policy.takes == (1, 2)
    if how == "another version":
        await held.update(3, resume=False)
    elif how == "paused":
        await held.policy.resume("run", 1, PolicyVersion(1, 2))
        await held.policy.pause("run", 1, 1.0)
        ask_probe(held.policy)  # an evaluation's, say: no version is proved
    elif how == "a new learner":
        await held.init(incarnation=2)
    else:
        expire(held.policy)
    assert held.policy.takes is None


async def test_none_are_taken_for_a_base_that_adapters_follow(held: Held) -> None:
    """The learner's probe finds planted ones then."""
    await held.init(plan=ADAPTERS)
    await held.update(1, resume=False)
    await held.update(1, adapter_only=True)
    await held.update(2, resume=False)
    ask_probe(held.policy)
    assert held.policy.takes is None
    await held.update(2, resume=False, adapter_only=True)
    ask_probe(held.policy)
    assert held.policy.takes == (1, 2)


async def test_what_is_ready_waits_for_the_proof_and_does_not_keep_an_update_waiting(held: Held) -> None:
    await proving(held)
    waiting = asyncio.create_task(held.policy.opened())
    await asyncio.sleep(0.02)
    assert not waiting.done() and held.policy.admission.num_running == 0
    await held.update(3, resume=False)
    await asyncio.sleep(0.02)
    assert not waiting.done(), "pixels are of no version: the next one will do"
    await held.policy.resume("run", 1, PolicyVersion(1, 3))
    await asyncio.wait_for(waiting, 1)
    with held.policy.sampling() as version:
        assert version == (1, 3)
    await asyncio.wait_for(held.policy.opened(), 0.01)


async def test_a_long_update_costs_no_prompt_that_is_ready(held: Held) -> None:
    """It has deadlines of its own; only what comes of it may never be told."""
    await proving(held)
    waiting = asyncio.create_task(held.policy.opened())
    await held.policy.start("run", 1, PolicyVersion(1, 3), 1.0)
    expire(held.policy)
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await held.policy.update("run", 1, PolicyVersion(1, 3), 1.0)
    await held.policy.finish("run", 1, PolicyVersion(1, 3), 1.0)
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await held.policy.resume("run", 1, PolicyVersion(1, 3))
    await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize("how", ["a failed update", "a new learner", "the end", "never"])
async def test_it_waits_for_nothing_that_may_not_come(held: Held, how: str) -> None:
    await proving(held)
    waiting = asyncio.create_task(held.policy.opened())
    await asyncio.sleep(0)
    if how == "a failed update":
        held.receiver.failing = "receive"
        with pytest.raises(WeightUpdateError, match="receive failed"):
            await held.update(3)
    elif how == "a new learner":
        await held.init(incarnation=2)
    elif how == "the end":
        held.policy.drain()
    else:
        expire(held.policy)
    with pytest.raises(NotServingError):
        await asyncio.wait_for(waiting, 1)


async def test_it_gives_up_by_itself(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "READY_SECONDS", 0.05)
    await proving(held)
    with pytest.raises(NotServingError):
        await asyncio.wait_for(held.policy.opened(), 5)


async def hold(bench: Bench, number: int) -> PolicyVersion:
    """The server holds a version which is being proved."""
    version, arguments = PolicyVersion(bench.incarnation, number), (RUN, bench.incarnation)
    verbs: Any = bench.policy
    await verbs.init_transfer(*arguments, PLAN, 1.0)
    await verbs.start(*arguments, version, 5.0)
    await verbs.update(*arguments, version, 5.0)
    await verbs.finish(*arguments, version, 5.0)
    ask_probe(bench.policy)
    return version


def num_held(bench: Bench) -> int:
    """Prompts that this server has, as Redis sees it."""
    pending = bench.sync.xpending_range("mmr1:{test}:prompts", "rollout", "-", "+", 100)
    return sum(entry["consumer"].startswith(b"rollout-0/") for entry in pending)


async def resume(bench: Bench, version: PolicyVersion) -> None:
    await bench.policy.resume(RUN, bench.incarnation, version)
    bench.queue.commit_version(version)


async def collected(bench: Bench, count: int) -> list[Group]:
    groups: list[Group] = []
    await until(lambda: groups.extend(bench.queue.read(10)) or len(groups) == count)
    return groups


async def test_prompts_are_made_ready_while_a_version_is_proved_and_sampled_after_it(bench: Bench) -> None:
    async with working(bench):
        await bench.serve()
        version = await hold(bench, 2)
        bench.feed(0, 1, 2)
        await until(lambda: sorted(bench.sampler.prepared) == [0, 1, 2])
        await asyncio.sleep(0.1)
        assert bench.sampler.num_started == 0 and not bench.queue.read(10)
        await resume(bench, version)
        groups = await collected(bench, 3)
    assert {group.oldest_version for group in groups} == {version}
    assert sorted(bench.sampler.prepared) == [0, 1, 2] and bench.queue.ledger().balanced


async def test_an_update_does_not_wait_for_what_is_being_made_ready(bench: Bench) -> None:
    """A slow image: taken under one version, sampled under the next."""
    bench.sampler.may_prepare.clear()
    async with working(bench):
        await bench.serve()
        bench.feed(0)
        await until(lambda: num_held(bench) == 1)
        version = await asyncio.wait_for(hold(bench, 2), 1)
        await resume(bench, version)
        bench.sampler.may_prepare.set()
        (group,) = await collected(bench, 1)
    assert group.oldest_version == version


async def test_a_server_whose_version_is_never_proved_gives_its_prompts_back(bench: Bench) -> None:
    version = PolicyVersion(bench.incarnation, 1)
    async with working(bench):
        await bench.serve()
        await hold(bench, 2)
        bench.feed(0, 1)
        await until(lambda: sorted(bench.sampler.prepared) == [0, 1])
        other = bench.consumer("another")
        await other.register("elsewhere", "serves", version, 30)
        expire(bench.policy)
        await until(lambda: num_held(bench) == 0)
        taken = await until_async(lambda: other.take(2, version, 1))
        taken += await other.take(2, version, 1) if len(taken) < 2 else []
        assert [delivery.num_deliveries for delivery in taken] == [1, 1], "no death is counted"
        assert bench.sampler.num_started == 0 and bench.policy.takes is None


async def test_told_to_stop_it_gives_back_what_waits_at_once(bench: Bench) -> None:
    async with working(bench):
        await bench.serve()
        await hold(bench, 2)
        bench.feed(0, 1)
        await until(lambda: sorted(bench.sampler.prepared) == [0, 1])
        bench.policy.drain()
        await until(lambda: num_held(bench) == 0)
    assert bench.sampler.num_started == 0 and bench.queue.ledger().balanced


async def test_a_prompt_that_cannot_be_made_ready_is_dead_and_the_others_go_on(bench: Bench) -> None:
    bench.sampler.unreadable = {0}
    async with working(bench):
        await bench.serve()
        version = await hold(bench, 2)
        bench.feed(0, 1)
        await until(lambda: len(bench.sampler.prepared) == 2)
        await resume(bench, version)
        (group,) = await collected(bench, 1)
        assert group.prompt.id.position == 1
        await until(lambda: sum(bench.queue.ledger().dead.values()) == 1)


async def test_what_waits_when_the_engine_dies_has_killed_nothing(bench: Bench) -> None:
    """It was never in the engine: it is given back, while what was in it keeps its claim."""
    bench.sampler.failing = {0: EngineDiedError("gone")}
    bench.sampler.release.clear()
    async with working(bench):
        await bench.serve()
        bench.feed(0)
        await until(lambda: bench.sampler.running == [0])
        bench.sampler.may_prepare.clear()
        bench.feed(1)
        await until(lambda: num_held(bench) == 2)
        bench.sampler.release.set()
        await until(lambda: not bench.sampler.running)
        bench.sampler.may_prepare.set()  # the server has not noticed yet, and serves
        await until(lambda: num_held(bench) == 1)
        assert bench.policy.serves and bench.sampler.num_started == 1
