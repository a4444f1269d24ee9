"""What the learner decides from the accounts: what makes a step, what was trained before, and when to look again."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from mmr1.errors import ConfigurationError
from mmr1.records import Group, PolicyVersion, Prompt, PromptId
from mmr1.streams import Ledger, PromptConsumer
from mmr1_learner.checkpoint import RunState
from mmr1_learner.errors import StopRequestedError
from mmr1_learner.resume import FORGOTTEN, reconcile
from mmr1_learner.source import NO_VARIANCE, NOT_FINITE
from tests.conftest import make_group
from tests.unit.learner import run_of_a_test
from tests.unit.learner.run_of_a_test import PER_STEP, STEPS, Run


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path)


def at(position: int, attempt: int = 0) -> PromptId:
    return PromptId("test", position, attempt)


def test_a_checkpoint_tells_the_places_own_attempt_from_one_that_is_long_trained(run: Run) -> None:
    """Redis has forgotten a second: how 0/1 was trained, and that 3/0 was dropped for 3/1."""
    queue = run.learner().queue
    for id_ in (at(0, 1), at(2, 1), at(3, 0), at(4)):
        assert queue.feed(run.prompts.training(id_), force=True)
    state = RunState(1, 1, next_position=4, outstanding=(at(2, 0), at(3, 1)), ledger={**Ledger().as_dict(), "fed": 4})
    assert reconcile(queue, state, run.prompts) == 5
    assert queue.pending_ids() == {at(2, 1), at(3, 1), at(4)}
    ledger = queue.ledger()
    assert ledger.balanced and ledger.dropped == {FORGOTTEN: 2}


def bury_one(url: str) -> None:
    """A rollout server finds that a prompt can never be sampled."""

    async def work() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            consumer = PromptConsumer(client, "test", "b", claim_idle_seconds=60, max_deliveries=3)
            await consumer.register("x", "serves", PolicyVersion(1, STEPS - 1), 30)
            (held,) = await consumer.take(1, PolicyVersion(1, STEPS - 1), 1)
            assert await consumer.dead(held, "image")

    asyncio.run(work())


def test_a_prompt_that_dies_between_two_looks_feeds_no_place_too_many(run: Run, monkeypatch: Any) -> None:
    """In the last step: whoever counts it as gone must have counted it as dead."""
    learner = run.learner()
    while learner.step < STEPS - 1:
        learner.collect()
    learner.source.feed()
    run.serve(count=PER_STEP - 1)
    ledger, read = learner.queue.ledger, learner.queue.read
    has_read: list[Group] = []

    def look() -> Ledger:
        found = ledger()
        if has_read:
            has_read.clear()
            bury_one(run.url)
        return found

    def read_one(count: int) -> list[Group]:
        has_read.extend(read(count))
        return list(has_read)

    monkeypatch.setattr(learner.queue, "ledger", look)
    monkeypatch.setattr(learner.queue, "read", read_one)
    learner.finish()
    assert learner.queue.ledger().fed == STEPS * PER_STEP
    assert learner.queue.ledger().dead == {"image": 1}


def test_an_empty_queue_is_looked_at_seldom_and_cheaply(run: Run) -> None:
    learner = run.learner()
    client = redis.Redis.from_url(run.url)
    client.config_resetstat()
    end = time.monotonic() + 1.0

    def tick() -> None:
        if time.monotonic() > end:
            raise StopRequestedError

    with pytest.raises(StopRequestedError):
        learner.source.collect(learner.version, tick)
    stats: Any = client.info("commandstats")
    assert "cmdstat_hkeys" not in stats, "the ids of all items are no part of a look"
    assert 10 < stats["cmdstat_evalsha"]["calls"] < 90, "two scripts a look, twenty looks a second"


def broken_logprob(number: float, places: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollout server samples a token whose log-probability is `number`, at these places."""

    def make(prompt: Prompt, *arguments: Any) -> Group:
        group = make_group(prompt, *arguments)
        if prompt.id.position not in places:
            return group
        first, *others = group.rollouts
        return replace(group, rollouts=(replace(first, logprobs=(number, *first.logprobs[1:])), *others))

    monkeypatch.setattr(run_of_a_test, "make_group", make)


@pytest.mark.parametrize("number", [-math.inf, math.nan])
def test_a_group_whose_log_probabilities_are_no_numbers_is_dropped(
    run: Run, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-inf would leave the loss finite and make every figure of the step NaN."""
    broken_logprob(number, {0}, monkeypatch)
    learner = run.learner()
    assert [group.prompt.id.position for group in learner.collect()] == [1]
    learner.finish()
    assert learner.queue.ledger().dropped == {NOT_FINITE: 1}


def test_a_run_in_which_no_log_probability_is_a_number_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_logprob(-math.inf, set(range(STEPS * PER_STEP)), monkeypatch)
    learner = run.learner()
    with pytest.raises(ConfigurationError, match="no group of 3 steps came with finite log-probabilities"):
        learner.finish()
    assert learner.queue.ledger().balanced


@pytest.mark.parametrize(("task", "kept"), [("counting", PER_STEP), ("ocr", 0)])
def test_equal_rewards_are_kept_where_a_divergence_reaches_their_task(
    redis_url: str, tmp_path: Path, task: str, kept: int
) -> None:
    """kimikl of another task leaves such a group without any loss; it would only stand in the denominators."""
    learner = Run(redis_url, tmp_path, kl=["kimikl"], kimikl_task_id=task).learner()
    assert len(learner.collect(rewards=lambda _: (1.0, 1.0))) == kept
    assert learner.queue.ledger().dropped == ({NO_VARIANCE: PER_STEP} if kept == 0 else {})
