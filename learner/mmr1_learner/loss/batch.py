"""What the loss is told of one forward's tokens, and sums over a response. Nothing here is a term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What the loss knows of the N completion tokens of one forward, beside the models' own scores.

    A token's weight is its share of the step (`aggregation.py`), so losses of several forwards and ranks add up.
    """

    rollout_logprobs: Tensor  # [N] lo
    old_logprobs: Tensor | None  # [N] lp_old; None: the first update on this batch, so lp_old = lp
    advantages: Tensor  # [N]
    weights: Tensor  # [N]; 0 for dummy rows
    on_policy: Tensor  # [N]; 1 where the sampler held the learner's current version
    in_policy_term: Tensor  # [N]; 0 where the group's rewards are all equal
    in_kimikl: Tensor  # [N]; 0 where the sample is of another task than `kimikl_task_id`
    sequences: Tensor  # [N] index of the token's completion within this forward
    num_sequences: int

    @property
    def live(self) -> Tensor:
        """[N] True for tokens that take part."""
        return self.weights > 0

    def sums(self, values: Tensor) -> Tensor:
        """[num_sequences] of [N] values: sums over each response, with gradient."""
        zeros = torch.zeros(self.num_sequences, dtype=values.dtype, device=values.device)
        return zeros.index_add(0, self.sequences, values)

    def means(self, values: Tensor) -> Tensor:
        """[num_sequences] of [N] values: means over each response, with gradient."""
        return self.sums(values) / self.sums(torch.ones_like(values)).clamp(min=1)
