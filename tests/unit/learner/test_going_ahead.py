"""A step begins while the version before it is on its way. Nothing serves until it is proved, nothing is lost if not.

The real leader on a real Redis and real files; servers are played. That gradients are those of a step beside which
nothing was scored is test_engine.py's.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch

from mmr1.errors import StaleWriterError, WeightUpdateError
from mmr1.records import PolicyVersion
from mmr1_learner.errors import StopRequestedError
from mmr1_learner.weights import UpdateResult
from tests.unit.learner.run_of_a_test import PER_STEP, Learner, Run, Servers

AHEAD: dict[str, Any] = {"max_off_policy_steps": 1, "checkpoint_every": 100}


class Slow(Servers):
    """They take a version as soon as they may, or fail in the way that `error` says. Waiting, they hear `tick`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.may = threading.Event()
        self.may.set()
        self.error: Exception | None = None
        self.admits = False  # prompts, until the version is there

    def update(self, version: PolicyVersion, probe: Any = None, tick: Any = None, *others: Any) -> UpdateResult:
        if others[2:] and not self.admits:
            others[2]()
        while not self.may.wait(0.01):
            tick()
        if self.error is not None:
            raise self.error
        return super().update(version)


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path, **AHEAD)


@pytest.fixture
def learner(run: Run) -> Learner:
    return run.learner(goes_ahead=True, servers=Slow)


def servers(learner: Learner) -> Slow:
    found: Slow = learner.leader._sender
    return found


def committed(learner: Learner) -> int:
    return learner.queue.ledger().version_number


def records(run: Run) -> list[dict[str, Any]]:
    path = run.config.run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_step_begins_while_its_version_is_sent_and_ends_when_it_is_proved(run: Run, learner: Learner) -> None:
    servers(learner).may.clear()
    learner.collect()
    learner.leader.updates.before_forwards()
    assert (learner.version.number, committed(learner), records(run)) == (1, 0, [])
    with ThreadPoolExecutor(1) as thread:
        thread.submit(threading.Event().wait, 0.2).add_done_callback(lambda _: servers(learner).may.set())
        learner.leader.updates.end()
    assert committed(learner) == 1
    assert [(record["step"], record["policy_version"]) for record in records(run)] == [(1, str(learner.version))]


def test_a_step_does_not_begin_while_a_server_admits_prompts_under_an_older_version(learner: Learner) -> None:
    """What is fed for the step after it would be too old for it."""
    servers(learner).may.clear()
    servers(learner).admits = True
    with ThreadPoolExecutor(1) as thread:
        thread.submit(threading.Event().wait, 0.2).add_done_callback(lambda _: servers(learner).may.set())
        learner.collect()
        assert servers(learner).may.is_set(), "else it had gone on"
    learner.leader.updates.end()
    assert committed(learner) == 1


@pytest.mark.parametrize("looked", ["end", "settle"])
def test_a_gpu_that_has_no_room_for_both_gets_them_one_after_the_other(learner: Learner, looked: str) -> None:
    """Whoever looks first: the next step's end, or a wait for groups."""
    servers(learner).error = torch.OutOfMemoryError("CUDA out of memory")
    servers(learner).may.clear()
    learner.collect()
    servers(learner).may.set()
    wait([learner.leader.updates._under_way])
    servers(learner).error = None
    getattr(learner.leader.updates, looked)()
    assert committed(learner) == (1 if looked == "settle" else 0)
    learner.collect()
    assert not learner.leader.updates.may_go_ahead(learner.step)


def test_a_policy_that_cannot_be_scored_while_it_computes_is_scored_before(run: Run) -> None:
    learner = run.learner(goes_ahead=True, scores_beside=False, servers=Slow)
    learner.collect()
    learner.leader.updates.before_forwards()
    assert committed(learner) == 1
    assert not learner.leader.updates.are_under_way


def test_a_learner_that_waits_for_groups_lets_the_servers_serve(run: Run, learner: Learner) -> None:
    """They could sample nothing otherwise, and it would wait for ever."""
    learner.collect(count=PER_STEP)
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
    servers(learner).error = error
    learner.collect()
    learner.leader.updates.end()
    assert committed(learner) == 0
    assert records(run)[0]["probe_max_abs_dlogp"] is None
    servers(learner).error = None
    learner.collect()
    assert committed(learner) == 2, "proved at once, and nothing of the step after it had begun"


def test_what_ends_the_run_is_raised_where_it_is_waited_for_and_the_step_is_on_record(
    run: Run, learner: Learner
) -> None:
    servers(learner).error = StaleWriterError("another learner")
    learner.collect()
    with pytest.raises(StaleWriterError):
        learner.leader.updates.end()
    assert [record["step"] for record in records(run)] == [1]


def test_there_is_no_other_try_once_the_step_waits(learner: Learner) -> None:
    updates = learner.leader.updates
    updates._between()
    updates._is_waited_for = True
    with pytest.raises(WeightUpdateError, match="cannot wait"):
        updates._between()


def test_what_fails_while_waiting_for_groups_is_sent_again(learner: Learner) -> None:
    sent: list[PolicyVersion] = []

    def update(version: PolicyVersion, *_: Any) -> UpdateResult:
        sent.append(version)
        if len(sent) == 1:
            raise WeightUpdateError("far from the learner's")
        return Servers.update(servers(learner), version)

    servers(learner).update = update  # type: ignore[method-assign]
    learner.collect()
    learner.leader.updates.settle()
    assert (sent, committed(learner)) == ([learner.version] * 2, 1)


def test_told_to_stop_while_it_is_sent_again_the_step_is_on_record(run: Run, learner: Learner) -> None:
    errors: list[Exception] = [StopRequestedError(), WeightUpdateError("far from the learner's")]

    def update(*_: Any) -> UpdateResult:
        raise errors.pop()

    servers(learner).update = update  # type: ignore[method-assign]
    learner.collect()
    with pytest.raises(StopRequestedError):
        learner.leader.updates.settle()
    assert [record["step"] for record in records(run)] == [1]


def test_told_to_stop_the_step_is_on_record(run: Run, learner: Learner) -> None:
    servers(learner).may.clear()
    learner.collect()
    learner.leader._stop = True
    plan = learner.leader.next_plan(learner.step)
    assert plan.stop
    assert [record["step"] for record in records(run)] == [1]
    learner.save()
    assert run.checkpoints.newest()


def test_a_run_that_fails_beside_an_update_waits_for_it_and_keeps_the_record(run: Run, learner: Learner) -> None:
    servers(learner).may.clear()
    servers(learner).close = lambda: None  # type: ignore[attr-defined]
    learner.collect()
    learner.leader.close(1)
    assert not learner.leader.updates.are_under_way
    assert [record["step"] for record in records(run)] == [1]


def test_the_other_ranks_hear_nothing_from_a_thread_beside_a_step(learner: Learner) -> None:
    """They compute: what they were told would meet a gradient."""
    heard = learner.leader._policy.keep_alive
    heard.reset_mock()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(learner.leader._tick).result()
    assert not heard.called
    learner.leader._tick()
    assert heard.called


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
