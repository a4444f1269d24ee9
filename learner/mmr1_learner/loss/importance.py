"""The importance weight w: what the sampler drew is not quite what the learner scores.

It corrects the policy term and no other. No gradient flows through it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmr1.config.objective import ObjectiveOptions
from mmr1_learner.loss.batch import TokenBatch
from mmr1_learner.loss.report import LossReport


@torch.no_grad()
def importance_weight(lp_old: Tensor, batch: TokenBatch, options: ObjectiveOptions, report: LossReport) -> Tensor:
    """[N] of exp(lp_old - lo), corrected as `importance_correction` says.

    `tis`: truncated at `tis_bound` (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"). `icepop`: as it is within [icepop_low, icepop_high], else 0 (Ling team 2025, "Small leak can sink a
    great ship: boost RL training on MoE with IcePop"). `sequence_mask`: as it is, but 0 for a whole response whose mean
    |lp_old - lo| is above `sequence_mask_bound`. `none`: 1. A weight of 0 takes the token out of the policy term and
    leaves the denominators alone.
    """
    gap = lp_old - batch.rollout_logprobs
    ratio = torch.exp(gap)
    # k3 estimate of KL(sampler || learner). Over all tokens it holds the lag of versions too; what the engines alone
    # differ by shows only where both hold the same version.
    divergence = torch.where(batch.live, ratio - 1 - gap, 0.0)
    report.add("off_policy_kl", divergence.sum())
    report.add("mismatch_kl", (divergence * batch.on_policy).sum())
    report.add("on_policy_tokens", (batch.live * batch.on_policy).sum())
    report.add_ratios("importance", gap, batch.live)
    if options.importance_correction == "tis":
        report.add("truncated_tokens", ((ratio > options.tis_bound) & batch.live).sum())
        return ratio.clamp(max=options.tis_bound)
    if options.importance_correction == "none":
        return torch.ones_like(ratio)
    if options.importance_correction == "icepop":
        kept = (ratio >= options.icepop_low) & (ratio <= options.icepop_high)
    else:
        kept = (batch.means(gap.abs()) <= options.sequence_mask_bound)[batch.sequences]
    report.add("masked_tokens", (~kept & batch.live).sum())
    return torch.where(kept, ratio, 0.0)
