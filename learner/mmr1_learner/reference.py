"""The reference: a policy that does not learn, which the divergence terms of the loss pull towards."""

from __future__ import annotations

import torch
from torch import Tensor

from mmr1_learner.model import Policy
from mmr1_learner.rows import RowBatch


class Reference:
    """Scores what the policy trains on."""

    def __init__(self, policy: Policy, device: torch.device) -> None:
        self._policy = policy.to(device)

    def logprobs(self, batch: RowBatch) -> Tensor:
        """lr: [N] log-probabilities of the batch's completion tokens, without gradient."""
        with torch.no_grad():
            found: Tensor = self._policy(batch).logprobs
            return found
