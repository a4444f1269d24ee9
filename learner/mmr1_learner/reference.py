"""The reference: a policy that does not learn, which the divergence terms of the loss pull towards."""

from __future__ import annotations

import torch

from mmr1_learner.loss import Projection
from mmr1_learner.model import Policy
from mmr1_learner.rows import RowBatch


class Reference:
    """Computes what the policy trains on, up to the logits, which are made chunk by chunk beside the policy's."""

    def __init__(self, policy: Policy, device: torch.device) -> None:
        self._policy = policy.to(device)

    def projection(self, batch: RowBatch) -> Projection:
        """What its logits of the batch's completion tokens are made of, without gradient."""
        with torch.no_grad():
            made: Projection = self._policy(batch, score=False)
            return made
