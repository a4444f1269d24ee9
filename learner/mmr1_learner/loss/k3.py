"""k3, the positive estimate of the divergence from the reference (J. Schulman, "Approximating KL divergence").

The term is adaptive: a response that the policy is unsure of is pulled less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmr1.config.objective import ObjectiveOptions
from mmr1_learner.loss.batch import TokenBatch

_SMALLEST_LOG_RATIO = -20.0  # so that exp(-d) stays finite, and its square in the gradient's norm too


def k3(lp: Tensor, lr: Tensor) -> Tensor:
    """[N] exp(-d) + d - 1 with d = lp - lr; never negative. Below d = -20 it is what it is there, without gradient."""
    difference = (lp - lr).clamp(min=_SMALLEST_LOG_RATIO)
    return torch.exp(-difference) + difference - 1


def k3_term(lp: Tensor, lr: Tensor, entropy: Tensor, batch: TokenBatch, options: ObjectiveOptions) -> Tensor:
    """[N] k3_weight x s_i x k3, s_i = 1 / (1 + k3_adaptive_factor x mean entropy of response i), without gradient."""
    with torch.no_grad():
        scale = 1 / (1 + options.k3_adaptive_factor * batch.means(entropy))
    return options.k3_weight * scale[batch.sequences] * k3(lp, lr)
