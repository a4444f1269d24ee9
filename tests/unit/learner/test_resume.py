"""The learner's end of the queue and its checkpoints, on a real Redis and real files: no engine is needed for it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
import redis
import redis.asyncio
from PIL import Image

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError, StaleWriterError
from mmr1.images import ImageStore
from mmr1.records import Group, PolicyVersion, Prompt, PromptId
from mmr1.streams import PromptConsumer, RunForgottenError, RunQueue
from mmr1_learner.checkpoint import Checkpoints, RunState, _from_json, verify
from mmr1_learner.leader import Leader
from mmr1_learner.plan import StepPlan
from mmr1_learner.resume import check_prompts_per_step, reconcile
from mmr1_learner.source import GroupSource
from mmr1_learner.train import _take_steps
from tests.conftest import make_group, make_prompt
from tests.models import small_config

STEPS, PER_STEP = 3, 2


class Prompts:
    """Stands where PromptFactory does: the same place always gives the same prompt. Needs no model."""

    def __init__(self, root: Path) -> None:
        Image.new("L", (28, 28)).save(root / "a.png")
        self._image = ImageStore(root).ref("a.png")

    def training(self, id_: PromptId) -> Prompt:
        return replace(make_prompt(id_.position, id_.attempt, id_.run), images=(self._image,))


class Run:
    """One run folder with its Redis, and learners that come and go."""

    def __init__(self, url: str, folder: Path, **options: Any) -> None:
        self.url, self.folder = url, folder
        self.config: RunConfig = small_config(
            folder,
            run="test",
            image_root=str(folder),
            num_steps=STEPS,
            num_generations=2,
            per_device_batch_size=2 * PER_STEP,
            **options,
        )
        self.prompts: Any = Prompts(folder)
        self.checkpoints = Checkpoints(folder / "checkpoints", keep_last=2)
        self.trained: list[PromptId] = []  # in the parameters that the newest checkpoint holds

    def connect(self) -> RunQueue:
        return RunQueue(redis.Redis.from_url(self.url), "test")

    def learner(self) -> Learner:
        found = self.checkpoints.newest()
        return Learner(self, found[1] if found else None)

    def serve(
        self, rewards: Callable[[Prompt], tuple[float | None, ...]] = lambda _: (1.0, 0.0), count: int = 100
    ) -> None:
        """A rollout server takes what waits and publishes it, scored by `rewards`."""

        async def work() -> None:
            async with redis.asyncio.Redis.from_url(self.url) as client:
                consumer = PromptConsumer(client, "test", "a", claim_idle_seconds=60, max_deliveries=3)
                queue = RunQueue(redis.Redis.from_url(self.url), "test")
                version = PolicyVersion(queue.ledger().incarnation, queue.ledger().version_number)
                await consumer.register("x", "serves", version, 30)
                for held in await consumer.take(count, version, 1):
                    group = make_group(held.prompt, rewards(held.prompt), version.number)
                    spans = tuple(span._replace(version=version) for span in group.rollouts[0].spans)
                    rollouts = tuple(replace(rollout, spans=spans) for rollout in group.rollouts)
                    await consumer.publish(held, replace(group, rollouts=rollouts))

        asyncio.run(work())


class Learner:
    """The queue's side of `leader.py`, step by step, so that a test can end it anywhere."""

    def __init__(self, run: Run, state: RunState | None) -> None:
        self.run = run
        self.queue = run.connect()
        incarnation = self.queue.become_writer("run-id", state.version_number if state else 0)
        self.step = state.step if state else 0
        self.version = PolicyVersion(incarnation, self.step)
        self.queue.commit_version(self.version)
        self.lineage = dict(state.lineage) if state else {}
        next_position = reconcile(self.queue, state, run.prompts)
        self.source = GroupSource(run.config, self.queue, run.prompts, next_position, self.lineage)
        self.unsaved: list[PromptId] = []

    def collect(self, **serve: Any) -> list[Group]:
        collected = self.source.collect(self.version, lambda: self.run.serve(**serve))
        self.unsaved += [group.prompt.id for group in collected.groups]
        self.step += 1
        self.version = self.version._replace(number=self.version.number + 1)
        self.queue.commit_version(self.version)
        return collected.groups

    def save(self, *, acknowledge: bool = True) -> None:
        ledger, pending = self.queue.snapshot()
        contained = tuple(self.unsaved)
        accounts = {**ledger.as_dict(), "trained": ledger.trained + len(contained)}
        state = RunState(
            self.step,
            self.version.number,
            self.source.next_position,
            contained,
            tuple(sorted(pending - set(contained))),
            accounts,
            lineage=tuple({**self.lineage, self.version.incarnation: self.version.number}.items()),
        )
        self.run.checkpoints.start(self.step)
        self.run.checkpoints.finish(state, self.queue.ensure_current)
        self.run.trained += contained
        if acknowledge:
            self.queue.acknowledge(contained)
            self.unsaved.clear()

    def finish(self, **serve: Any) -> None:
        while self.step < STEPS:
            self.collect(**serve)
        self.save()
        ledger = self.queue.ledger()
        assert ledger.balanced and ledger.pending == 0, ledger


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path)


def places(run: Run) -> list[int]:
    return sorted(id_.position for id_ in run.trained)


def test_a_crash_between_checkpoint_and_acknowledgement_trains_nothing_twice(run: Run) -> None:
    first = run.learner()
    first.collect()
    first.save(acknowledge=False)
    second = run.learner()
    assert second.queue.ledger().trained == PER_STEP, "what the checkpoint contains is acknowledged first"
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
    assert second.version.incarnation > first.version.incarnation - 1
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
    shard = run.checkpoints.start(3) / "engine" / "shard.pt"
    shard.parent.mkdir()
    shard.write_bytes(b"weights")
    run.checkpoints.finish(RunState(3, 3, 0), lambda: None)
    aside = "/checkpoints/step-000003.writing"
    before, after = synced[: synced.index(f"{aside}/manifest.json")], synced[synced.index(f"{aside}/manifest.json") :]
    assert set(before) == {aside, f"{aside}/engine", f"{aside}/engine/shard.pt", f"{aside}/state.json"}
    assert after[1:] == [aside, "/checkpoints", ""]


def test_what_a_learner_was_writing_when_it_was_cut_goes_with_the_next_checkpoint(run: Run) -> None:
    learner = run.learner()
    (run.checkpoints.start(1) / "half").write_bytes(b"weights")
    for _ in range(2):
        learner.collect()
    learner.save()
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-000002"]


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
        def next_plan(self, step: int) -> StepPlan:
            return StepPlan(step, (), stop=True)

        def state_at(self, step: int) -> int:
            return step

        commit_checkpoint = staticmethod(saved.append)

    leader, trainer, published = cast(Any, Told()), Mock(), Mock(tell=lambda word: word)
    assert not _take_steps(run.config, published, trainer, leader, run.checkpoints, durable)
    assert saved == ([0] if durable is None else [])


def test_a_superseded_learner_cannot_make_its_checkpoint_real(run: Run) -> None:
    frozen = run.learner()
    frozen.collect()
    run.learner()
    with pytest.raises(StaleWriterError):
        frozen.save()
    assert run.checkpoints.newest() is None


def test_a_run_of_the_same_name_from_another_folder_is_refused(run: Run) -> None:
    run.learner()
    stranger = RunQueue(redis.Redis.from_url(run.url), "test")
    with pytest.raises(ConfigurationError, match="another run folder; give this one another --run name"):
        stranger.become_writer("another-id", 0)
