"""The reference: a policy that does not learn, which the divergence terms of the loss pull towards.

It is the policy as it was loaded; with adapters, the same weights with the adapters switched off, so there is no second
copy. It may follow the policy in steps of its own (TR-DPO, arXiv 2404.09656, equation 6). Knows no loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmr1.config import RunConfig
from mmr1_learner.adapters import has_adapters, without_adapters
from mmr1_learner.engine import partition_reference
from mmr1_learner.loss import Projection
from mmr1_learner.model import Policy
from mmr1_learner.ranks import Ranks
from mmr1_learner.rows import RowBatch
from mmr1_learner.whole import is_partitioned


def reference_of(config: RunConfig, policy: Policy) -> Policy | None:
    """What the run's reference is made of, before the engine takes the policy; None when the run needs none."""
    if not config.kl:
        return None
    return policy if has_adapters(policy) else policy.frozen_copy()


class Reference:
    """Computes what the policy trains on, up to the logits, which are made chunk by chunk beside the policy's."""

    def __init__(self, config: RunConfig, reference: Policy, ranks: Ranks) -> None:
        self._shared = has_adapters(reference)
        self._config = config
        if config.zero_stage == 3 and not self._shared:
            reference = partition_reference(config, reference)
        self.policy = reference if config.zero_stage == 3 else reference.to(ranks.device)

    @property
    def moves(self) -> bool:
        """Whether it is a part of what a checkpoint must hold."""
        return self._config.ref_sync_steps > 0

    def projection(self, batch: RowBatch) -> Projection:
        """What its logits of the batch's completion tokens are made of, without gradient."""
        with torch.no_grad():
            if not self._shared:
                made: Projection = self.policy(batch, score=False)
                return made
            with without_adapters(self.policy):
                base: Projection = self.policy(batch, score=False)
                return base

    def follow(self, policy: Policy, step: int) -> None:
        """After step `step`, from 1: every `ref_sync_steps`, ref <- alpha policy + (1 - alpha) ref.

        Made in float32. Each rank mixes what it holds: with ZeRO-3 its share, for both are cut alike.
        """
        if not self.moves or step % self._config.ref_sync_steps:
            return
        alpha = self._config.ref_sync_alpha
        with torch.no_grad():
            for mine, theirs in zip(self.policy.parameters(), policy.parameters(), strict=True):
                target, source = _held(mine), _held(theirs)
                mixed = alpha * source.to(target.device, torch.float32) + (1 - alpha) * target.float()
                target.copy_(mixed)


def _held(parameter: Tensor) -> Tensor:
    """What this rank holds of it."""
    share: Tensor = parameter.ds_tensor.data if is_partitioned(parameter) else parameter.data  # type: ignore[attr-defined]
    return share
