"""The leader's end of the queue and its checkpoints, on a real Redis and real files: no engine is needed for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
import redis
from PIL import Image

from mmr1.errors import ConfigurationError, StaleWriterError
from mmr1.records import Group, Problem, Prompt, PromptId
from mmr1.streams import RunForgottenError, RunQueue
from mmr1_learner.checkpoint import RunState, _from_json, verify
from mmr1_learner.leader import Leader
from mmr1_learner.parity import ParityReport
from mmr1_learner.plan import StepPlan
from mmr1_learner.probing import Prober
from mmr1_learner.prompts import PromptFactory
from mmr1_learner.resume import check_prompts_per_step
from mmr1_learner.train import _take_steps
from tests.unit.learner.run_of_a_test import PER_STEP, STEPS, Learner, Run, places


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path)


class CrashError(Exception):
    """The learner ends here."""


def crash(*_: object) -> None:
    raise CrashError


def test_a_crash_between_checkpoint_and_acknowledgement_trains_nothing_twice(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run.learner()
    first.collect()
    monkeypatch.setattr(first.queue, "acknowledge", crash)
    with pytest.raises(CrashError):
        first.save()
    assert first.queue.ledger().trained == 0
    second = run.learner()
    assert second.queue.ledger().trained == PER_STEP, "what the checkpoint contains is acknowledged first"
    second.finish()
    assert places(run) == list(range(STEPS * PER_STEP))


def test_a_crash_before_the_checkpoint_has_its_name_has_acknowledged_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its groups would be nobody's: no parameters contain them, and Redis would have let go of them."""
    first = run.learner()
    applied = {group.prompt.id for group in first.collect()}
    monkeypatch.setattr(first.checkpoints, "_give_name", crash)
    with pytest.raises(CrashError):
        first.save()
    monkeypatch.undo()
    ledger = first.queue.ledger()
    assert ledger.trained == 0 and ledger.balanced and run.checkpoints.newest() is None
    second = run.learner()
    assert {group.prompt.id for group in second.collect()} == applied
    second.finish()
    assert places(run) == list(range(STEPS * PER_STEP))


def test_a_newer_learner_between_checkpoint_and_acknowledgement_counts_its_groups_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one froze when its checkpoint had its name; the newer goes on from it, and then the older wakes up."""
    first = run.learner()
    first.collect()
    acknowledge = first.queue.acknowledge
    newer: list[Learner] = []

    def frozen(ids: Sequence[PromptId]) -> int:
        newer.append(run.learner())
        return acknowledge(ids)

    monkeypatch.setattr(first.queue, "acknowledge", frozen)
    with pytest.raises(StaleWriterError, match="superseded by 2"):
        first.save()
    (second,) = newer
    assert second.step == 1 and second.queue.ledger().trained == PER_STEP
    second.finish()
    assert places(run) == list(range(STEPS * PER_STEP))


def test_a_crash_after_applying_hands_the_same_groups_out_again(run: Run) -> None:
    first = run.learner()
    first.collect()
    first.save()
    lost = {group.prompt.id for group in first.collect()}  # applied, and no checkpoint has them
    second = run.learner()
    again = {group.prompt.id for group in second.collect()}
    assert again == lost
    second.finish()
    assert places(run) == list(range(STEPS * PER_STEP))


def test_an_emptied_redis_is_filled_from_the_checkpoint(run: Run) -> None:
    first = run.learner()
    first.collect()
    first.save()
    redis.Redis.from_url(run.url).flushall()
    second = run.learner()
    assert second.version.incarnation > first.version.incarnation
    ledger = second.queue.ledger()
    assert ledger.balanced and ledger.trained == PER_STEP
    second.finish()
    assert places(run) == list(range(STEPS * PER_STEP))
    assert second.queue.ledger().trained == STEPS * PER_STEP


def test_a_redis_emptied_during_the_run_is_no_takeover(run: Run) -> None:
    """Superseded means exit code 2 and no restart; forgotten is an ordinary failure, after which the run goes on."""
    first = run.learner()
    first.collect()
    first.save()
    redis.Redis.from_url(run.url).flushall()
    with pytest.raises(RunForgottenError, match="emptied during the run"):
        first.collect()
    with pytest.raises(RunForgottenError):
        first.save()
    second = run.learner()
    with pytest.raises(StaleWriterError, match="superseded by 2"):
        first.collect()
    second.finish()
    assert places(run) == list(range(STEPS * PER_STEP))


def test_a_run_whose_dropped_places_no_checkpoint_contains_still_ends(redis_url: str, tmp_path: Path) -> None:
    """Groups without variance are dropped; the learner then dies before a checkpoint has the step they closed."""
    run = Run(redis_url, tmp_path, kl=[])
    first = run.learner()
    assert first.collect(rewards=lambda _: (1.0, 1.0)) == []
    second = run.learner()
    second.finish()
    ledger = second.queue.ledger()
    assert ledger.dropped == {"no_variance": 2 * PER_STEP}, "what was sampled before the crash and has no variance"
    assert ledger.trained == len(run.trained) == (STEPS - 1) * PER_STEP


def test_a_group_whose_image_has_changed_is_dropped_with_the_reason(run: Run) -> None:
    learner = run.learner()
    learner.source.feed()
    run.serve()
    Image.new("L", (56, 56)).save(run.folder / "a.png")
    assert learner.collect() == []
    assert learner.queue.ledger().dropped["image"] == PER_STEP


def test_a_damaged_checkpoint_is_refused_because_its_groups_are_acknowledged(run: Run) -> None:
    """Going on from the one before would lose them: nobody holds them any more. Removing it is the user's decision."""
    learner = run.learner()
    for _ in range(2):
        learner.collect()
        learner.save()
    newest = run.checkpoints.path(2)
    text = (newest / "state.json").read_text()
    (newest / "state.json").write_text(text.replace('"step": 2', '"step": 3'))
    with pytest.raises(ConfigurationError, match=r"step-000002 is damaged: state\.json has other bytes .* put a copy"):
        run.learner()
    (newest / "state.json").write_text(text + " ")
    with pytest.raises(
        ConfigurationError, match=rf"state\.json has {len(text) + 1} bytes, and {len(text)} by its mani"
    ):
        run.learner()
    (newest / "manifest.json").unlink()
    with pytest.raises(ConfigurationError, match="no readable manifest"):
        run.learner()
    shutil.rmtree(newest)
    found = run.checkpoints.newest()
    assert found is not None and found[1].step == 1
    manifest = json.loads((run.checkpoints.path(1) / "manifest.json").read_text())
    assert set(manifest["files"]) == {"state.json"}


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_checkpoint_is_there_wherever_its_replacement_is_cut(
    run: Run, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = run.learner()
    learner.collect()
    learner.save()
    done: list[Path] = []
    rename, sync = Path.rename, os.fsync

    def cut(_: object) -> None:
        raise OSError("cut")

    def rename_some(path: Path, target: Path) -> Path:
        if len(done) == renames:
            cut(path)
        done.append(target)
        if len(done) == 2:
            monkeypatch.setattr(os, "fsync", cut)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_some)
    with pytest.raises(OSError, match="cut"):
        learner.save()
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(os, "fsync", sync)
    found = run.checkpoints.newest()
    assert found is not None and found[1].step == 1 and verify(found[0]) is None
    learner.save()
    assert [path.name for path in sorted((run.folder / "checkpoints").iterdir())] == ["step-000001"]


def test_a_manifest_is_written_when_everything_it_names_is_on_the_disk(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(run.folder)))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    shard = run.checkpoints.start(3, lambda: None) / "engine" / "shard.pt"
    shard.parent.mkdir()
    shard.write_bytes(b"weights")
    run.checkpoints.finish(RunState(3, 3, 0), lambda: None)
    aside = "/checkpoints/step-000003.writing-0"
    before, after = synced[: synced.index(f"{aside}/manifest.json")], synced[synced.index(f"{aside}/manifest.json") :]
    assert set(before) == {aside, f"{aside}/engine", f"{aside}/engine/shard.pt", f"{aside}/state.json"}
    assert after[1:] == [aside, "/checkpoints", ""]


def test_a_run_that_goes_on_with_other_steps_is_refused_before_it_is_anybodys(run: Run) -> None:
    """A place's step, and with it a linear temperature, follows from the prompts per step."""
    leader = Leader.__new__(Leader)
    leader._config = run.config
    state = RunState(1, 1, PER_STEP, prompts_per_step=PER_STEP + 1)
    with pytest.raises(ConfigurationError, match=r"written with 3 prompts per step, and the run now has 2 .*restore"):
        leader.prepare(state)
    check_prompts_per_step(run.config, replace(state, prompts_per_step=PER_STEP))
    run.learner().save()
    path = run.checkpoints.path(0) / "state.json"
    older = json.loads(path.read_text())
    del older["prompts_per_step"]
    check_prompts_per_step(run.config, _from_json(older))


@pytest.mark.parametrize("durable", [None, 2])
def test_a_step_that_is_durable_is_not_saved_again_at_the_end(run: Run, durable: int | None) -> None:
    """Stopped right after a checkpoint: the one that is there needs no replacement."""
    saved: list[int] = []

    class Told:
        queue = Mock()

        def next_plan(self, step: int) -> StepPlan:
            return StepPlan(step, (), stop=True)

        def state_at(self, step: int) -> int:
            return step

        commit_checkpoint = staticmethod(saved.append)

    leader, trainer, published = cast(Any, Told()), Mock(), Mock(tell=lambda word: word)
    assert not _take_steps(run.config, published, trainer, leader, run.checkpoints, durable)
    assert saved == ([0] if durable is None else [])


def test_a_run_of_the_same_name_from_another_folder_is_refused(run: Run) -> None:
    run.learner()
    stranger = RunQueue(redis.Redis.from_url(run.url), "test")
    with pytest.raises(ConfigurationError, match="another run folder; give this one another --run name"):
        stranger.become_writer("another-id", 0)


def test_a_probe_is_sampled_as_the_step_that_follows_the_update(
    redis_url: str, tmp_path: Path, small_model: Path
) -> None:
    """It asks whether a server samples what the learner scores; of a schedule, at the temperature that comes next."""
    linear = {"temperature_func": "linear", "temperature_begin": 0.6, "temperature_end": 1.0}
    run = Run(redis_url, tmp_path, **linear)
    config = run.config.model_copy(update={"model": str(small_model)})
    asked: list[float] = []

    def ask(prompts: Sequence[Prompt], **_: Any) -> list[Group]:
        asked.extend(prompt.sampling.temperature for prompt in prompts)
        return []

    def answered(question: Callable[[], list[Group]]) -> Future[list[Group]]:
        answer: Future[list[Group]] = Future()
        answer.set_result(question())
        return answer

    def learner() -> Learner:
        life = run.learner()
        problems = [Problem(0, "How many?", 3, (), "counting")]
        servers, serve = life.leader._sender, life.leader._sender.update
        servers.clients, servers.begin = list, answered
        servers.update = lambda version, probe, *_: probe(Mock(generate_many=ask)) and serve(version)
        scorer: Any = Mock(compare_each=lambda answers: [ParityReport(1e-9, 1e-9, 1, 0.0) for _ in answers])
        prompts = PromptFactory(config, problems, ())
        life.leader._prober = Prober(config, servers, scorer, Mock(), prompts, problems, life.leader.files)
        life.leader.updates._prober = life.leader._prober
        return life

    first = learner()
    first.collect()
    first.save()
    second = learner()
    second.collect()
    second.collect()
    assert asked == pytest.approx([0.8, 1.0, 1.0]), "the last of three steps has none after it"
