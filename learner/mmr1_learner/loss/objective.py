"""GRPO's token loss: clipped surrogate, importance correction, k3.

Notation as in the papers: lp current log-probability, lp_old the same at the start of the batch, lo the sampler's, lr
the reference's. All sums run over completion tokens; a token's `weight` is 1 / (its completion's length x the number of
sequences in the whole step), so losses of several forwards and ranks add up to the mean over sequences of the mean
over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmr1.config.options import ObjectiveOptions
from mmr1_learner.loss.token_stats import TokenStats


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What the loss knows of the N completion tokens of one forward, beside the current policy's scores."""

    rollout_logprobs: Tensor  # [N] lo
    old_logprobs: Tensor | None  # [N] lp_old; None: the first update on this batch, so lp_old = lp
    ref_logprobs: Tensor | None  # [N] lr
    advantages: Tensor  # [N]
    weights: Tensor  # [N]; 0 for dummy rows
    on_policy: Tensor  # [N]; 1 where the sampler held the learner's current version
    sequences: Tensor  # [N] index of the token's completion within this forward
    num_sequences: int


@dataclass
class LossReport:
    """Sums over tokens, ready to be added over forwards and ranks; `means` divides them."""

    sums: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor | float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def merge(self, other: LossReport) -> None:
        for name, value in other.sums.items():
            self.add(name, value)


def compute_loss(stats: TokenStats, batch: TokenBatch, options: ObjectiveOptions) -> tuple[Tensor, LossReport]:
    """The loss of one forward (a scalar to call backward on) and what it consisted of."""
    report = LossReport()
    live = (batch.weights > 0).float()
    lp = stats.logprobs
    lp_old = lp.detach() if batch.old_logprobs is None else batch.old_logprobs
    correction = _importance_weight(lp_old, batch, options, live, report)
    ratio = torch.exp(lp - lp_old)
    clipped = torch.clamp(ratio, 1 - options.clip_low, 1 + options.clip_high)
    surrogate = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
    loss = -(batch.weights * correction * surrogate).sum()
    report.add("policy_loss", loss.detach())
    with torch.no_grad():
        outside = ((ratio != clipped) & (ratio * batch.advantages > clipped * batch.advantages)).float()
        report.add("clipped_tokens", (outside * live).sum())
        report.add("entropy", (stats.entropy.detach() * live).sum())
        report.add("num_tokens", live.sum())
    if batch.ref_logprobs is not None:
        loss = loss + _k3(stats, batch, options, live, report)
    report.add("loss", loss.detach())
    return loss, report


def _importance_weight(
    lp_old: Tensor, batch: TokenBatch, options: ObjectiveOptions, live: Tensor, report: LossReport
) -> Tensor:
    """w = exp(lp_old - lo), truncated at `tis_bound`: what the sampler drew is not quite what the learner scores.

    Truncated importance sampling as in Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy
    RL training". No gradient flows through w.
    """
    with torch.no_grad():
        gap = lp_old - batch.rollout_logprobs
        weight = torch.exp(gap)
        # k3 estimate of KL(sampler || learner). Over all tokens it holds the lag of versions too; what the engines
        # alone differ by shows only where both hold the same version.
        divergence = (weight - 1 - gap) * live
        report.add("off_policy_kl", divergence.sum())
        report.add("mismatch_kl", (divergence * batch.on_policy).sum())
        report.add("on_policy_tokens", (live * batch.on_policy).sum())
        if options.importance_correction == "none":
            return torch.ones_like(weight)
        report.add("truncated_tokens", ((weight > options.tis_bound).float() * live).sum())
        return torch.clamp(weight, max=options.tis_bound)


def _k3(stats: TokenStats, batch: TokenBatch, options: ObjectiveOptions, live: Tensor, report: LossReport) -> Tensor:
    """k3 = exp(-d) + d - 1 with d = lp - lr (J. Schulman, "Approximating KL divergence").

    Scaled by s_i = 1 / (1 + k3_adaptive_factor x mean entropy of response i), without gradient: a response that the
    policy is unsure of is pulled less.
    """
    assert batch.ref_logprobs is not None
    difference = torch.clamp(stats.logprobs - batch.ref_logprobs, -20, 20)  # exp stays finite
    k3 = torch.exp(-difference) + difference - 1
    report.add("kl_k3", (k3.detach() * live).sum())
    if "k3" not in options.kl:
        return k3.new_zeros(())
    with torch.no_grad():
        counts = torch.zeros(batch.num_sequences, device=k3.device).index_add_(0, batch.sequences, live)
        sums = torch.zeros_like(counts).index_add_(0, batch.sequences, stats.entropy.detach() * live)
        scale = 1 / (1 + options.k3_adaptive_factor * sums / counts.clamp(min=1))
    return options.k3_weight * (batch.weights * scale[batch.sequences] * k3).sum()
