"""KimiKL, the squared log-ratio to the reference: k2 of J. Schulman, "Approximating KL divergence".

Its gradient, unlike k1's, is that of the divergence on-policy. It may be kept to one task of a mixed run.
"""

from __future__ import annotations

from torch import Tensor

from mmr1.config.objective import ObjectiveOptions
from mmr1_learner.loss.batch import TokenBatch


def kimikl(lp: Tensor, lr: Tensor) -> Tensor:
    """[N] d^2 / 2 with d = lp - lr."""
    return (lp - lr).square() / 2


def kimikl_term(lp: Tensor, lr: Tensor, batch: TokenBatch, options: ObjectiveOptions) -> Tensor:
    """[N] kimikl_weight x d^2 / 2; 0 on samples of other tasks than `kimikl_task_id`."""
    return options.kimikl_weight * batch.in_kimikl * kimikl(lp, lr)
