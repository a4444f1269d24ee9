"""The policy term of each objective: what moves the policy towards what scored well.

Per token, before the token's share of the step. lp is the current log-probability, lp_old the same at the start of the
batch, lo the sampler's; A the advantage, w the importance weight, rho = exp(lp - lp_old). Which advantage belongs to
which objective stands in `advantages.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmr1.config.objective import ObjectiveOptions
from mmr1_learner.loss.batch import TokenBatch
from mmr1_learner.loss.report import LossReport


def policy_term(
    lp: Tensor, lp_old: Tensor, weight: Tensor, batch: TokenBatch, options: ObjectiveOptions, report: LossReport
) -> Tensor:
    """[N], with gradient through `lp` alone; 0 for the tokens of a group whose rewards are all equal."""
    log_ratio = lp - lp_old
    report.add_ratios("ratio", log_ratio, batch.live)
    if options.objective == "gspo":
        # Every token carries its response's ratio, the geometric mean of the tokens' (arXiv 2507.18071, eq. 7).
        log_ratio = batch.means(log_ratio)[batch.sequences]
    ratio = torch.exp(log_ratio)
    clipped = torch.zeros_like(batch.live)
    if options.objective == "cispo":
        term = _cispo(lp, ratio, weight, batch, options)
        clipped = ratio > 1 + options.clip_high
    elif options.objective == "rloo":
        # REINFORCE with the others' mean as baseline (arXiv 2402.14740).
        term = -weight * batch.advantages * lp
    elif options.objective == "kimi":
        term = _kimi(lp, batch, options)
    else:
        term, clipped = _surrogate(ratio, weight, batch, options)
    taking_part = batch.live & (batch.in_policy_term > 0)
    report.add("clipped_tokens", (clipped & taking_part).sum())
    return torch.where(taking_part, term, 0.0)


def _surrogate(ratio: Tensor, weight: Tensor, batch: TokenBatch, options: ObjectiveOptions) -> tuple[Tensor, Tensor]:
    """-w min(rho A, clip(rho) A), and where the clip stops the gradient (arXiv 2402.03300, eq. 3; 1707.06347, eq. 7).

    `dr_grpo` (2503.20783) and `dapo` (2503.14476, eq. 8) differ by advantage, bounds and aggregation; `gspo` by the
    ratio it is given.
    """
    advantages = batch.advantages
    bounded = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    term = -weight * torch.minimum(ratio * advantages, bounded * advantages)
    clipped = (ratio != bounded) & (ratio * advantages > bounded * advantages)
    return term, clipped


def _cispo(lp: Tensor, ratio: Tensor, weight: Tensor, batch: TokenBatch, options: ObjectiveOptions) -> Tensor:
    """-w sg(clip(rho, 0, 1 + clip_high)) A lp: clips the weight of a token and not its gradient (2506.13585, eq. 4)."""
    return -weight * ratio.detach().clamp(max=1 + options.clip_high) * batch.advantages * lp


def _kimi(lp: Tensor, batch: TokenBatch, options: ObjectiveOptions) -> Tensor:
    """-A sum(lp) + tau / 2 (sum(lp) - sum(lo))^2, which every token of the response carries (arXiv 2501.12599).

    The gradient is eq. 3's: policy mirror descent towards the policy that sampled. It corrects for that policy itself,
    so w is not used.
    """
    drift = batch.sums(lp - batch.rollout_logprobs)
    term = -batch.sums(batch.advantages * lp) + options.kimi_tau / 2 * drift**2
    return term[batch.sequences]
