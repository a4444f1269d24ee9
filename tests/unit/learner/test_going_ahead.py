"""A step begins while the version before it is being proved. Nothing serves until it is; nothing is lost if it is not.

The real leader on a real Redis and real files; servers are played. That gradients are those of a step during which
nothing else was scored is test_launched_step.py's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmr1.errors import WeightUpdateError
from mmr1.records import PolicyVersion
from mmr1_learner.errors import StopRequestedError
from mmr1_learner.weights import Delivered, UpdateResult
from tests.unit.learner.run_of_a_test import PER_STEP, Learner, Run, Servers

AHEAD: dict[str, Any] = {"max_off_policy_steps": 1, "checkpoint_every": 100}


class Doubted(Servers):
    """They take every version; proving one fails as long as `error` says how."""

    error: Exception | None = None

    def prove(self, delivered: Delivered, *given: Any) -> UpdateResult:
        if self.error is not None:
            raise self.error
        return super().prove(delivered, *given)


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path, **AHEAD)


@pytest.fixture
def learner(run: Run) -> Learner:
    learner = run.learner(goes_ahead=True)
    learner.leader._sender = Doubted(learner.queue)
    return learner


def committed(learner: Learner) -> int:
    return learner.queue.ledger().version_number


def records(run: Run) -> list[dict[str, Any]]:
    path = run.config.run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_version_is_committed_before_the_next_steps_forwards_and_not_earlier(run: Run, learner: Learner) -> None:
    learner.collect()
    assert (learner.version.number, committed(learner), records(run)) == (1, 0, [])
    learner.leader.before_forwards()
    assert committed(learner) == 1
    assert [(record["step"], record["policy_version"]) for record in records(run)] == [(1, str(learner.version))]


def test_a_learner_that_waits_for_groups_lets_the_servers_serve(run: Run, learner: Learner) -> None:
    """They could sample nothing otherwise, and it would wait for ever."""
    learner.collect(count=PER_STEP)
    assert committed(learner) == 0
    waited: list[int] = []

    def while_waiting() -> None:
        type(learner.leader)._while_waiting(learner.leader)
        waited.append(committed(learner))
        run.serve()

    learner.leader._last_look = float("inf")  # for late servers
    learner.collect(while_waiting)
    assert waited[0] == 1


@pytest.mark.parametrize("error", [WeightUpdateError("far from the learner's"), StopRequestedError()])
def test_a_version_that_is_not_proved_is_passed_over_and_the_next_waited_for(
    run: Run, learner: Learner, error: Exception
) -> None:
    learner.collect()
    learner.leader._sender.error = error
    learner.leader.before_forwards()
    assert committed(learner) == 0
    assert records(run)[0]["probe_max_abs_dlogp"] is None
    learner.leader._sender.error = None
    learner.collect()
    assert committed(learner) == 2, "proved at once, and nothing of the step after it had begun"


def test_what_fails_while_waiting_is_sent_again(learner: Learner) -> None:
    learner.collect()
    learner.leader._sender.error = WeightUpdateError("far from the learner's")
    sent: list[PolicyVersion] = []

    def update(version: PolicyVersion, *_: Any) -> UpdateResult:
        sent.append(version)
        learner.leader._sender.error = None
        return Servers.update(learner.leader._sender, version)

    learner.leader._sender.update = update
    learner.leader._settle()
    assert (sent, committed(learner)) == ([learner.version], 1)


def test_told_to_stop_while_it_is_sent_again_the_step_is_on_record(run: Run, learner: Learner) -> None:
    learner.collect()
    learner.leader._sender.error = WeightUpdateError("far from the learner's")

    def update(*_: Any) -> UpdateResult:
        raise StopRequestedError

    learner.leader._sender.update = update
    with pytest.raises(StopRequestedError):
        learner.leader._settle()
    assert [record["step"] for record in records(run)] == [1]


def test_told_to_stop_the_step_is_on_record(run: Run, learner: Learner) -> None:
    learner.collect()
    learner.leader._stop = True
    plan = learner.leader.next_plan(learner.step)
    assert plan.stop
    assert [record["step"] for record in records(run)] == [1]
    learner.save()
    assert run.checkpoints.newest()


@pytest.mark.parametrize(
    ("options", "alone"), [({"max_off_policy_steps": 0}, True), ({"checkpoint_every": 1}, True), ({}, False)]
)
def test_who_may_not_go_ahead_waits(redis_url: str, tmp_path: Path, options: dict[str, Any], alone: bool) -> None:
    """Without older groups, with a checkpoint to write, or where scoring takes all ranks."""
    run = Run(redis_url, tmp_path, **{**AHEAD, **options})
    learner = run.learner(goes_ahead=alone)
    learner.collect()
    assert committed(learner) == 1
    assert len(records(run)) == 1
