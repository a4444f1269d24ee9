"""KimiFull, the divergence from the reference itself: sum over the vocabulary, no estimate.

KL(policy || reference) of each token's distribution is computed where the logits are, in `token_stats.py`.
"""

from __future__ import annotations

from torch import Tensor

from mmr1.config.objective import ObjectiveOptions


def kimifull_term(kimifull: Tensor, options: ObjectiveOptions) -> Tensor:
    """[N] kimifull_weight x sum_v pi(v) (log pi(v) - log pi_ref(v))."""
    return options.kimifull_weight * kimifull
