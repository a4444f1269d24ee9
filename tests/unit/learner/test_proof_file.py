"""The groups of each optimizer step, as `proof` writes them down: an interrupted run's are an uninterrupted one's.

SEMANTICS: a group's life, and "after a crash", given the same recorded groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.unit.learner.run_of_a_test import PER_STEP, STEPS, Learner, Run

Interruption = Callable[[Learner, pytest.MonkeyPatch], None]


class CrashError(Exception):
    """The learner ends here."""


def crash(*_: object) -> None:
    raise CrashError


def before_a_checkpoint(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner.collect()


def in_a_checkpoint(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner.collect()
    with monkeypatch.context() as patched, pytest.raises(CrashError):
        patched.setattr(learner.checkpoints, "_give_name", crash)
        learner.save()


def between_checkpoint_and_acknowledgement(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner.collect()
    with monkeypatch.context() as patched, pytest.raises(CrashError):
        patched.setattr(learner.queue, "acknowledge", crash)
        learner.save()


def between_training_and_its_record(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(CrashError):
        patched.setattr(learner.leader, "after_step", crash)
        learner.collect()


def with_an_emptied_redis(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner.save()
    redis.Redis.from_url(learner.run.url).flushall()


def steps_of(run: Run) -> list[tuple[int, list[str]]]:
    lines = (run.config.run_dir / "proof.jsonl").read_text().splitlines()
    return [(record["step"], record["groups"]) for record in map(json.loads, lines)]


@pytest.fixture
def uninterrupted(redis_url: str, tmp_path: Path) -> list[tuple[int, list[str]]]:
    folder = tmp_path / "uninterrupted"
    folder.mkdir()
    run = Run(redis_url, folder, proof=True)
    run.learner().finish()
    redis.Redis.from_url(redis_url).flushall()
    return steps_of(run)


def test_an_uninterrupted_run_has_each_group_of_the_data_order_once(
    uninterrupted: list[tuple[int, list[str]]],
) -> None:
    assert [step for step, _ in uninterrupted] == list(range(1, STEPS + 1))
    assert [id_ for _, ids in uninterrupted for id_ in ids] == [f"{place}/0" for place in range(STEPS * PER_STEP)]


@pytest.mark.parametrize("steps_before", range(STEPS))
@pytest.mark.parametrize(
    "interrupt",
    [
        before_a_checkpoint,
        in_a_checkpoint,
        between_checkpoint_and_acknowledgement,
        between_training_and_its_record,
        with_an_emptied_redis,
    ],
)
def test_an_interrupted_run_trains_in_each_step_what_an_uninterrupted_one_does(
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: list[tuple[int, list[str]]],
    interrupt: Interruption,
    steps_before: int,
) -> None:
    run = Run(redis_url, tmp_path, proof=True)
    first = run.learner()
    for _ in range(steps_before):
        first.collect()
    if steps_before:
        first.save()
    interrupt(first, monkeypatch)
    run.learner().finish()
    assert steps_of(run) == uninterrupted


def test_without_the_option_there_is_no_such_file(redis_url: str, tmp_path: Path) -> None:
    run = Run(redis_url, tmp_path)
    run.learner().finish()
    assert not (run.config.run_dir / "proof.jsonl").exists()
