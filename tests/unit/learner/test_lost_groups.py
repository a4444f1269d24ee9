"""SEMANTICS 1: the equation can fail, and then the run does not end as if nothing were missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from mmr1.errors import ConfigurationError
from tests.unit.learner.run_of_a_test import STEPS, Learner, Run, places

WORDS = r"the ledger does not balance: \d+ fed, but .* pending; .* delete the keys mmr1:\{test\}:\*"


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path)


def lose_a_prompt(run: Run) -> None:
    client = redis.Redis.from_url(run.url)
    ((entry, _), *_) = client.xrange("mmr1:{test}:prompts")
    client.xdel("mmr1:{test}:prompts", entry)


def begun(run: Run) -> Learner:
    """One step is durable, and of what is fed for the next ones a prompt is lost."""
    learner = run.learner()
    learner.collect()
    learner.save()
    learner.source.feed()
    lose_a_prompt(run)
    return learner


def test_no_checkpoint_is_written_on_accounts_that_do_not_balance(run: Run) -> None:
    learner = begun(run)
    learner.collect()
    with pytest.raises(ConfigurationError, match=WORDS):
        learner.save()
    found = run.checkpoints.newest()
    assert found is not None and found[1].step == 1 and len(learner.unsaved) > 0


def test_no_other_place_stands_in_for_one_that_is_lost(run: Run) -> None:
    """It would be a whole run, of the right number of groups, without one of the data order."""
    learner = begun(run)
    with pytest.raises(ConfigurationError, match=WORDS):
        while learner.step < STEPS:
            learner.collect()
    assert max(id_.position for id_ in learner.queue.pending_ids()) < learner.source._end


def test_the_remedy_brings_the_lost_one_back(run: Run) -> None:
    begun(run)
    client = redis.Redis.from_url(run.url)
    client.delete(*client.keys("mmr1:{test}:*"))
    second = run.learner()
    second.finish()
    second.leader.finish()
    assert places(run) == list(range(6))


def test_a_run_that_has_counted_a_group_twice_is_not_done(run: Run) -> None:
    learner = run.learner()
    learner.finish()
    redis.Redis.from_url(run.url).hincrby("mmr1:{test}:ledger", "trained", 1)
    with pytest.raises(ConfigurationError, match=WORDS):
        learner.leader.finish()
