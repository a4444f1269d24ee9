"""What is trained, dropped or dead is over: no learner that starts anew, or tells again, brings it back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio

from mmr1.records import PromptId
from mmr1.streams import PromptConsumer
from mmr1_learner.source import STALE, UNSCORED
from tests.own_redis import OwnRedis
from tests.unit.learner.run_of_a_test import PER_STEP, STEPS, Learner, Run, places
from tests.unit.learner.test_redis_restart import PatientRun

SETTLED = "mmr1:{test}:settled"


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path)


def one_step_and_its_checkpoint(run: Run) -> Learner:
    """Places 2 to 5 are outstanding in the checkpoint: 2 and 3 had come with the step, 4 and 5 are fed beside them."""
    learner = run.learner()
    learner.collect()
    learner.source.feed()
    learner.save()
    return learner


def kill_one(learner: Learner) -> PromptId:
    """The next prompt that waits turns out to be one that nobody can sample."""

    async def work() -> PromptId:
        async with redis.asyncio.Redis.from_url(learner.run.url) as client:
            consumer = PromptConsumer(client, "test", "b", claim_idle_seconds=60, max_deliveries=2)
            await consumer.register("x", "serves", learner.version, 30)
            (held,) = await consumer.take(1, learner.version, 5)
            assert await consumer.dead(held, "max_deliveries", "kills servers")
            return held.prompt.id

    return asyncio.run(work())


def test_a_dead_prompt_stays_dead_when_the_learner_starts_anew(run: Run) -> None:
    """SEMANTICS 1 and 2: it died after the checkpoint that knows it as outstanding."""
    first = one_step_and_its_checkpoint(run)
    before = first.queue.ledger()
    dead = kill_one(first)
    second = run.learner()
    ledger = second.queue.ledger()
    assert (ledger.fed, ledger.pending) == (before.fed, before.pending - 1) and ledger.balanced
    assert dead not in second.queue.pending_ids()
    second.finish()
    assert dead.position not in places(run) and len(places(run)) == len(set(places(run)))


def test_what_was_dropped_stays_dropped_when_the_learner_starts_anew(run: Run) -> None:
    """SEMANTICS 1 and 2: with a next attempt or without one, and also when that attempt has died meanwhile."""
    first = one_step_and_its_checkpoint(run)
    before = first.queue.ledger()
    dropped, refilled = sorted(first.queue.pending_ids())[-2:]
    assert first.queue.drop(dropped, UNSCORED)
    assert first.queue.drop(refilled, STALE, run.prompts.training(refilled.next_attempt()))
    run.serve(count=before.num_prompts - 2)
    assert kill_one(first) == refilled.next_attempt()
    second = run.learner()
    ledger = second.queue.ledger()
    assert ledger.balanced and ledger.fed == before.fed + 1
    assert not {dropped.position, refilled.position} & {id_.position for id_ in second.queue.pending_ids()}
    second.finish()
    assert not {dropped.position, refilled.position} & set(places(run))


def test_what_is_settled_is_remembered_no_longer_than_it_may_be_asked_for(run: Run) -> None:
    client = redis.Redis.from_url(run.url)
    first = one_step_and_its_checkpoint(run)
    assert not client.exists(SETTLED), "before the oldest outstanding place all is over: one number says so"
    first.collect()
    kill_one(first)
    first.save()
    assert not client.exists(SETTLED)
    second = run.learner()
    second.finish()
    assert not client.exists(SETTLED)
    assert not second.queue.feed(run.prompts.training(PromptId("test", 0)), force=True), "nor is it forgotten"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    server = OwnRedis(tmp_path / "redis", "always")
    yield server
    server.kill()


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_told_again_to_a_redis_that_forgot_nothing_counts_once(
    server: OwnRedis, tmp_path: Path, durable: bool
) -> None:
    """SEMANTICS 2 and 6: a resume feeds with force; what it fed is settled when Redis is started anew soon after."""
    run = PatientRun(server, tmp_path)
    one_step_and_its_checkpoint(run)
    server.client().flushall()
    second = run.learner()
    second.collect()
    dropped = max(second.queue.pending_ids())
    assert second.queue.drop(dropped, STALE, run.prompts.training(dropped.next_attempt()))
    if durable:
        second.save()
    before = second.queue.ledger()
    server.restart()
    assert second.queue.ledger() == before and before.balanced
    second.finish()
    assert places(run) == list(range(STEPS * PER_STEP))
