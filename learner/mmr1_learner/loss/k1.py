"""k1, the plain log-ratio to the reference, as a loss term (J. Schulman, "Approximating KL divergence").

As an estimate of the divergence it is unbiased. As a loss it is honest to say that its expected gradient is zero
on-policy: E[grad lp] = 0. What it does to a single batch is noise, unless the batch is off-policy or the clip acts.
"""

from __future__ import annotations

from torch import Tensor

from mmr1.config.objective import ObjectiveOptions


def k1(lp: Tensor, lr: Tensor) -> Tensor:
    """[N] d = lp - lr, whose mean over samples of the policy is KL(policy || reference)."""
    return lp - lr


def k1_term(lp: Tensor, lr: Tensor, options: ObjectiveOptions) -> Tensor:
    """[N] k1_weight x d, clipped to +- k1_threshold."""
    return options.k1_weight * k1(lp, lr).clamp(-options.k1_threshold, options.k1_threshold)
