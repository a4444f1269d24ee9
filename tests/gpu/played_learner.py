"""Rank 0 of a learner on a GPU, as rollout servers see it, and servers on theirs: weights are drawn, not trained."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import redis
import torch

from mmr1.config import RunConfig
from mmr1.dataset import train_problems
from mmr1.errors import WeightUpdateError
from mmr1.images import ImageStore
from mmr1.records import Group, PolicyVersion, PromptId, Sampling
from mmr1.rollout_client import RolloutClient
from mmr1.streams import RunQueue
from mmr1_learner.model import PromptEncoder, load_policy
from mmr1_learner.parity import ParityReport, Scorer
from mmr1_learner.prompts import PromptFactory
from mmr1_learner.published import Published
from mmr1_learner.ranks import Ranks
from mmr1_learner.weights import UpdateResult, WeightSender
from tests.e2e.reference_policy import image_prompt
from tests.e2e.rollout_process import RolloutServer


class PlayedLearner:
    """Sends by the learner's own sender over a real Redis, and scores by its own scorer."""

    def __init__(self, config: RunConfig, images: ImageStore, device: torch.device) -> None:
        self.config, self.images, self.device = config, images, device
        self.ranks = Ranks(0, 1, device)
        self.policy = load_policy(config.model, config).to(device).eval()
        self.published = Published(self.policy, self.ranks, config.weight_bucket_bytes)
        self.encoder = PromptEncoder(config.model, self.policy, config)
        self.scorer = Scorer(config, self.published, self.encoder, device)
        self.queue = RunQueue(redis.Redis.from_url(config.resolved_redis_url), config.run)
        self.version = PolicyVersion(self.queue.become_writer(), 0)
        self.sender = WeightSender(config, self.queue, self.published, "127.0.0.1", device)
        self._base = [parameter.detach().clone() for parameter in self.policy.parameters()]

    def draw(self, seed: int, scale: float) -> None:
        """Every parameter is its first value, times one plus noise of this seed."""
        generator = torch.Generator(device=self.device).manual_seed(seed)
        with torch.no_grad():
            for parameter, base in zip(self.policy.parameters(), self._base, strict=True):
                noise = torch.randn(base.shape, generator=generator, device=self.device)
                parameter.copy_(base * (1 + scale * noise))

    def update(self, *, probe: bool = True) -> UpdateResult:
        """To the next version."""
        self.version = PolicyVersion(self.version.incarnation, self.version.number + 1)
        return self.sender.update(self.version, self.probe if probe else None, lambda: None)

    def probe(self, client: RolloutClient) -> float:
        report = self.scorer.compare(self.ask(client, 2, probe=True))
        if not report.mean_abs_dlogp <= self.config.bound(self.config.dtype):
            raise WeightUpdateError(f"{client.address} is {report.mean_abs_dlogp:.2e} from the learner")
        return report.max_abs_dlogp

    def ask(self, client: RolloutClient, count: int, *, tokens: int = 12, probe: bool = False) -> list[Group]:
        """The images in turn, at two temperatures; each again after a while, so that caches would answer."""
        forbidden = self.encoder.forbidden_token_ids
        prompts = [
            image_prompt(
                self.images,
                index % 3,
                Sampling((1.0, 0.7)[index % 2], tokens, forbidden_token_ids=forbidden, ignore_eos=True, seed=index),
                run=self.config.run,
            )
            for index in range(count)
        ]
        return client.generate_many(prompts, timeout=120, probe=probe)

    def ask_problems(self, client: RolloutClient, count: int, *, tokens: int) -> list[Group]:
        """The first problems of the run's own file, as its gate asks them."""
        problems = train_problems(self.config, check_images=False)
        factory = PromptFactory(self.config, problems, self.encoder.forbidden_token_ids)
        prompts = []
        for index in range(count):
            sampling = replace(factory.sampling(1.0, index), max_completion_length=tokens, ignore_eos=True)
            prompts.append(factory.make(PromptId(f"{self.config.run}/parity", index), problems[index], sampling, 1))
        return client.generate_many(prompts, timeout=120, probe=True)

    def gap(self, groups: Sequence[Group]) -> ParityReport:
        return self.scorer.compare(groups)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """What children started inside inherit."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def start_server(folder: Path, index: int, place: str, **options: Any) -> RolloutServer:
    """A rollout server on this GPU, or on these, separated by commas."""
    with environment(CUDA_VISIBLE_DEVICES=place):
        return RolloutServer(folder, f"rollout-{index}", **options)


def kill(server: RolloutServer) -> None:
    """The server and its engine's processes at once, as a machine that loses power."""
    process = psutil.Process(server.process.pid)
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    server.process.wait(30)
