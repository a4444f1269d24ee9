"""What the next step will be made of is known while the step before it ends; nothing is decided by knowing it.

The real leader and source on a real Redis; servers are played.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmr1.records import Prompt
from mmr1_learner.plan import StepPlan
from tests.unit.learner.run_of_a_test import PER_STEP, STEPS, Learner, Run

AHEAD: dict[str, Any] = {"max_off_policy_steps": 1, "checkpoint_every": 100}


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path, **AHEAD)


def planned(learner: Learner, step: int) -> StepPlan | None:
    """Asked before the step's parameters move: the learner's version is not yet the one that they make."""
    made = learner.version
    learner.leader.version = made._replace(number=made.number - 1)
    word = learner.leader.plan_ahead(step)
    learner.leader.version = made
    return StepPlan.decode(word) if word else None


def test_it_is_the_plan_that_follows_and_until_then_nothing_has_happened(run: Run) -> None:
    learner = run.learner()
    learner.collect()
    run.serve()
    ledger = learner.queue.ledger()
    ahead, again = planned(learner, learner.step), planned(learner, learner.step)
    assert learner.queue.ledger() == ledger
    plan = learner.leader.next_plan(learner.step)
    assert ahead == again == plan
    assert len(plan.groups) == PER_STEP


def test_when_a_group_is_missing_nothing_is_planned_and_what_was_read_is_not_lost(run: Run) -> None:
    learner = run.learner()
    learner.collect(count=PER_STEP)
    run.serve(count=1)
    assert planned(learner, learner.step) is None
    ((early, _),) = learner.source._early
    groups = learner.collect()
    assert len(groups) == PER_STEP
    assert groups[0].prompt.id == early.prompt.id
    learner.collect()
    learner.save()
    assert sorted(id_.position for id_ in run.trained) == list(range(STEPS * PER_STEP))


def test_a_group_that_will_be_dropped_plans_nothing_and_is_dropped_once(run: Run) -> None:
    learner = run.learner()
    learner.collect(count=PER_STEP)

    def unscored(_prompt: Prompt) -> tuple[float | None, ...]:
        return (None, None)

    run.serve(unscored)
    assert planned(learner, learner.step) is None
    assert planned(learner, learner.step) is None
    assert sum(learner.queue.ledger().dropped.values()) == 0, "to look ahead decides nothing"
    learner.collect()
    assert sum(learner.queue.ledger().dropped.values()) == PER_STEP


def test_a_learner_that_dies_after_looking_ahead_leaves_everything_to_the_next(run: Run) -> None:
    first = run.learner()
    first.collect()
    first.save()
    run.serve()
    assert planned(first, first.step) is not None
    second = run.learner()
    second.finish()
    assert sorted(id_.position for id_ in run.trained) == list(range(STEPS * PER_STEP))


@pytest.mark.parametrize("options", [{"max_off_policy_steps": 0}, {"num_steps": 1}])
def test_nothing_is_ready_on_policy_or_after_the_last_step(
    redis_url: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    run = Run(redis_url, tmp_path, **{**AHEAD, **{k: v for k, v in options.items() if k != "num_steps"}})
    learner = run.learner()
    learner.collect()
    run.serve()
    step = STEPS if "num_steps" in options else learner.step
    assert planned(learner, step) is None
