"""A run without a model, for tests of what becomes of its groups: the real leader, on a real Redis and real files.

Its rollout servers are played: they take what waits and answer at once. Learners come and go; a test ends one anywhere.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import redis
import redis.asyncio
from PIL import Image

from mmr1.config import RunConfig
from mmr1.images import ImageStore
from mmr1.records import Group, PolicyVersion, Prompt, PromptId
from mmr1.streams import PromptConsumer, RunQueue
from mmr1_learner.checkpoint import Checkpoints, RunState
from mmr1_learner.completion_details import CompletionDetails
from mmr1_learner.leader import Leader
from mmr1_learner.metrics import RunFiles
from mmr1_learner.source import Collected, GroupSource
from mmr1_learner.trackers import Trackers
from mmr1_learner.updates import Updates
from mmr1_learner.weights import UpdateResult
from tests.conftest import make_group, make_prompt
from tests.models import Letters, small_config

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
            run_dir=str(folder / "run"),
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

    def learner(self, **how: Any) -> Learner:
        found = self.checkpoints.newest()
        return Learner(self, found[1] if found else None, **how)

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


class Servers:
    """Stand where WeightSender does: all of them have each version at once."""

    def __init__(self, queue: RunQueue) -> None:
        self._queue = queue
        self._threads = ThreadPoolExecutor(1)

    def update(self, version: PolicyVersion, *_: Any) -> UpdateResult:
        self._queue.commit_version(version)
        return UpdateResult(0.0, 1, None, 0)

    def begin(self, question: Callable[[], UpdateResult]) -> Future[UpdateResult]:
        return self._threads.submit(question)


class Learner:
    """The real leader between its stations, so that a test can end it at any. It has no model and no signals."""

    def __init__(
        self,
        run: Run,
        state: RunState | None,
        *,
        goes_ahead: bool = False,
        scores_beside: bool = True,
        servers: type[Servers] = Servers,
    ) -> None:
        self.run = run
        self.checkpoints = Checkpoints(run.folder / "checkpoints", keep_last=2)
        self.leader: Any = object.__new__(Leader)
        leader, files = self.leader, RunFiles(run.config.run_dir)
        self.leader.__dict__ |= {
            "_config": run.config,
            # That the other ranks hear from it, and how it may be scored, is all that is asked of it here.
            "_policy": MagicMock(scores_alone=goes_ahead, scores_beside=scores_beside),
            "_prober": Mock(of_bound={}, comparing_seconds=0.0),
            "_checkpoints": self.checkpoints,
            "_prompts": run.prompts,
            "_evaluator": None,
            "_details": CompletionDetails(Letters(), ImageStore(run.config.run_dir)),
            "_identity": {},
            "files": files,
            "queue": run.connect(),
            "_state": RunState(0, 0, 0),
            "_unsaved": [],
            "_collected": Collected(),
            "_unscored_steps": 0,
            "_started": time.monotonic(),
            "_stop": False,
            "_thread": threading.get_ident(),
        }
        leader._sender = servers(self.queue)
        heard = (leader._tick, leader._heed_stop, leader._write_record)
        leader.updates = Updates(run.config, leader._sender, leader._prober, leader._policy, files, *heard)
        leader._trackers = Trackers(run.config, files, run.config.run_dir)
        leader.take_over(state)
        leader.updates.send(leader.version, leader._state.step, Mock())
        self.step = state.step if state else 0

    @property
    def queue(self) -> RunQueue:
        found: RunQueue = self.leader.queue
        return found

    @property
    def source(self) -> GroupSource:
        found: GroupSource = self.leader._source
        return found

    @property
    def unsaved(self) -> list[PromptId]:
        found: list[PromptId] = self.leader._unsaved
        return found

    @property
    def version(self) -> PolicyVersion:
        found: PolicyVersion = self.leader.version
        return found

    def collect(self, while_waiting: Callable[[], None] | None = None, **serve: Any) -> list[Group]:
        """One step: its groups, as the trainer would get them, and all that follows when it has trained on them."""
        self.leader._while_waiting = while_waiting or (lambda: self.run.serve(**serve))
        plan = self.leader.next_plan(self.step)
        self.leader.after_step(plan, {"num_tokens": 1.0} if plan.groups else {}, {}, 0.1, {})
        self.step += 1
        return list(plan.groups)

    def save(self) -> None:
        """As train.py does, with no tensors to write."""
        self.checkpoints.start(self.step, self.queue.ensure_current)
        state = self.leader.state_at(self.step)
        try:
            self.leader.commit_checkpoint(state)
        finally:
            found = self.run.checkpoints.newest()
            if found is not None and (found[1].step, found[1].contained) == (state.step, state.contained):
                self.run.trained += state.contained

    def finish(self, **serve: Any) -> None:
        while self.step < STEPS:
            self.collect(**serve)
        self.save()
        ledger = self.queue.ledger()
        assert ledger.balanced and ledger.pending == 0, ledger


def places(run: Run) -> list[int]:
    return sorted(id_.position for id_ in run.trained)
