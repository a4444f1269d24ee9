"""SEMANTICS 7: a learner that was frozen while it wrote a checkpoint, and wakes up, changes nothing any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from mmr1.errors import StaleWriterError
from mmr1_learner.errors import OvertakenError
from mmr1_learner.plan import StepPlan
from mmr1_learner.train import _take_steps
from tests.unit.learner.run_of_a_test import PER_STEP, STEPS, Learner, Run, places

SHARD = "engine/state-00000.safetensors"


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path)


def written(learner: Learner, words: str) -> Path:
    """What the ranks hold, in a checkpoint that has no name yet."""
    aside = learner.checkpoints.start(learner.step, learner.queue.ensure_current)
    (aside / "engine").mkdir()
    (aside / SHARD).write_text(words)
    return aside


def commit(learner: Learner) -> None:
    learner.leader.commit_checkpoint(learner.leader.state_at(learner.step))


def newest(run: Run) -> str:
    found = run.checkpoints.newest()
    assert found is not None
    return (found[0] / SHARD).read_text()


def folders(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def test_one_that_was_frozen_before_it_began_begins_nothing(run: Run) -> None:
    frozen = run.learner()
    frozen.collect()
    second = run.learner()
    second.collect()
    written(second, "second")
    with pytest.raises(StaleWriterError, match="superseded by 2"):
        frozen.save()
    commit(second)
    assert newest(run) == "second" and folders(run) == ["step-000001"]


def test_one_that_was_frozen_while_it_wrote_goes_on_writing_nowhere(run: Run) -> None:
    frozen = run.learner()
    frozen.collect()
    aside = written(frozen, "half")
    second = run.learner()
    second.collect()
    written(second, "second")
    with pytest.raises(FileNotFoundError):
        (aside / SHARD).write_text("FIRST")
    with pytest.raises(FileNotFoundError):
        commit(frozen)
    commit(second)
    assert newest(run) == "second" and folders(run) == ["step-000001"]


@pytest.mark.parametrize("has_written", [False, True])
def test_one_that_was_frozen_when_it_was_allowed_gives_no_name(
    run: Run, has_written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its question was answered just before the newer learner came."""
    frozen = run.learner()
    frozen.collect()
    written(frozen, "FIRST")
    give_name = frozen.checkpoints._give_name
    newer: list[Learner] = []

    def wakes_up(*arguments: Any) -> Path:
        newer.append(run.learner())
        newer[0].collect()
        if has_written:
            written(newer[0], "second")
            commit(newer[0])
        return give_name(*arguments)

    monkeypatch.setattr(frozen.checkpoints, "_give_name", wakes_up)
    with pytest.raises(FileNotFoundError):
        commit(frozen)
    assert folders(run) == (["step-000001"] if has_written else [])
    (second,) = newer
    assert second.queue.ledger().trained == has_written * PER_STEP
    written(second, "second")
    commit(second)
    assert newest(run) == "second" and folders(run) == ["step-000001"]


def test_a_folder_that_was_taken_away_is_told_as_what_it_is(run: Run) -> None:
    """An ordinary failure would be restarted, and take the run back from the learner that has taken it over."""
    frozen = run.learner()
    frozen.leader.next_plan = lambda step: StepPlan(step, (), stop=True)

    def save(folder: Path) -> None:
        run.learner()
        (folder.parent / "half").write_text("FIRST")

    trainer: Any = Mock()
    trainer.state.save = save
    published: Any = Mock(tell=lambda word: word)
    with pytest.raises(StaleWriterError, match="superseded by 2"):
        _take_steps(run.config, published, trainer, frozen.leader, frozen.checkpoints, None)
    assert folders(run) == []


def test_a_checkpoint_that_came_while_the_next_learner_was_loading_is_the_one_to_go_on_from(run: Run) -> None:
    """Else it would train again what that one contains; its own, of fewer steps, would not be the newest."""
    first = run.learner()
    first.collect()
    first.save()
    with pytest.raises(OvertakenError):
        Learner(run, None)  # it had looked before
    second = run.learner()
    assert second.step == 1
    second.finish()
    assert places(run) == list(range(STEPS * PER_STEP))


def test_what_a_learner_was_writing_when_it_was_cut_goes_with_the_next_learner(run: Run) -> None:
    run.learner()
    (run.folder / "checkpoints" / "step-000001.writing").mkdir(parents=True)  # as an earlier release named it
    written(run.learner(), "half")
    run.learner()
    assert folders(run) == []
