"""Entropy regularisation: a positive weight keeps the policy exploring, a negative one sharpens it (OCR, grounding)."""

from __future__ import annotations

from torch import Tensor

from mmr1.config.objective import ObjectiveOptions


def entropy_term(entropy: Tensor, options: ObjectiveOptions) -> Tensor:
    """[N] -entropy_weight x H, H in nats."""
    return -options.entropy_weight * entropy
