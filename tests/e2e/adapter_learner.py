"""Rank 0 of a learner whose adapters are sent alone, as far as its servers see it: it draws where others train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
import torch

from mmr1.config import RunConfig
from mmr1.errors import WeightUpdateError
from mmr1.records import Group, PolicyVersion
from mmr1.rollout_client import RolloutClient
from mmr1.streams import RunQueue
from mmr1_learner.model import PromptEncoder, load_policy
from mmr1_learner.parity import Scorer
from mmr1_learner.published_adapters import PublishedAdapters, publish
from mmr1_learner.ranks import Ranks
from mmr1_learner.weights import UpdateResult, WeightSender

RANKS = Ranks(0, 1, torch.device("cpu"))


class AdapterLearner:
    """Sends by the learner's own sender, over a real Redis.

    Args:
        sample: asks a server for groups; with True, as a probe.
        bound: of mean |delta log p|, above which a probe raises.
        device: where the policy is.
    """

    def __init__(
        self,
        config: RunConfig,
        url: str,
        sample: Callable[[RolloutClient, bool], list[Group]],
        bound: float,
        device: torch.device = RANKS.device,
    ) -> None:
        self.config, self.sample, self.bound = config, sample, bound
        policy = load_policy(config.model, config).to(device).eval()
        published = publish(config, policy, Ranks(0, 1, device))
        assert isinstance(published, PublishedAdapters)
        self.published = published
        self.published.refresh()
        self.encoder = PromptEncoder(config.model, policy, config)
        self.scorer = Scorer(config, self.published, self.encoder, device)
        self.queue = RunQueue(redis.Redis.from_url(url), config.run)
        self.version = PolicyVersion(self.queue.become_writer(), 0)
        self.sender = WeightSender(config, self.queue, self.published, "127.0.0.1", device)

    def draw(self, seed: int, scale: float = 0.05) -> None:
        """Adapters that say something, as steps would leave them."""
        generator = torch.Generator().manual_seed(seed)
        for name, part in self.published.policy.named_parameters():
            if "lora_B" in name:
                part.data.copy_(torch.randn(part.shape, generator=generator) * scale)
        self.published.refresh()

    def update(self, sender: WeightSender | None = None) -> UpdateResult:
        """To the next version. Another sender may send the policy in another way."""
        self.version = PolicyVersion(self.version.incarnation, self.version.number + 1)
        return (sender or self.sender).update(self.version, self.probe, lambda: None, self.probe)

    def probe(self, client: RolloutClient) -> float:
        report = self.scorer.compare(self.sample(client, True))
        if report.mean_abs_dlogp > self.bound:
            raise WeightUpdateError(f"log-probabilities are {report.mean_abs_dlogp:.2e} from the learner's")
        return report.max_abs_dlogp

    def client(self) -> RolloutClient:
        [client] = self.sender.clients()
        return client


def adapter_options(*modules: str) -> dict[str, Any]:
    """Options of a run that sends adapters of those layers alone."""
    return {
        "lora_rank": 4,
        "lora_alpha": 6.0,
        "lora_target_modules": list(modules),
        "lora_updates": "adapter",
        "freeze_vision_tower": True,
    }
