"""The loss of one forward: every term that the options ask for, put together.

Notation as in the papers: lp current log-probability, lp_old the same at the start of the batch, lo the sampler's, lr
the reference's. All sums run over completion tokens. What each term is stands in a file of its own; docs/objectives.md
has them side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmr1.config.objective import ObjectiveOptions
from mmr1_learner.loss.batch import TokenBatch
from mmr1_learner.loss.entropy import entropy_term
from mmr1_learner.loss.importance import importance_weight
from mmr1_learner.loss.k1 import k1, k1_term
from mmr1_learner.loss.k3 import k3, k3_term
from mmr1_learner.loss.kimifull import kimifull_term
from mmr1_learner.loss.kimikl import kimikl, kimikl_term
from mmr1_learner.loss.policy import policy_term
from mmr1_learner.loss.report import LossReport
from mmr1_learner.loss.token_stats import TokenStats


def compute_loss(stats: TokenStats, batch: TokenBatch, options: ObjectiveOptions) -> tuple[Tensor, LossReport]:
    """The loss of one forward (a scalar to call backward on) and what it consisted of."""
    report = LossReport()
    lp = stats.logprobs
    lp_old = lp.detach() if batch.old_logprobs is None else batch.old_logprobs
    weight = importance_weight(lp_old, batch, options, report)
    terms = {"policy": policy_term(lp, lp_old, weight, batch, options, report)}
    terms |= _divergence_terms(stats, batch, options)
    if options.entropy_reg:
        terms["entropy"] = entropy_term(stats.entropy, options)
    loss = torch.zeros((), dtype=lp.dtype, device=lp.device)
    for name, term in terms.items():
        part = (batch.weights * torch.where(batch.live, term, 0.0)).sum()
        report.add(f"{name}_loss", part.detach())
        loss = loss + part
    report.add("loss", loss.detach())
    _count(stats, batch, report)
    return loss, report


def _divergence_terms(stats: TokenStats, batch: TokenBatch, options: ObjectiveOptions) -> dict[str, Tensor]:
    """Those of the reference that enter the loss; none without a reference."""
    lp, lr = stats.logprobs, stats.ref_logprobs
    if lr is None or stats.kimifull is None:
        return {}
    terms = {}
    if "k1" in options.kl:
        terms["k1"] = k1_term(lp, lr, options)
    if "k3" in options.kl:
        terms["k3"] = k3_term(lp, lr, stats.entropy, batch, options)
    if "kimikl" in options.kl:
        terms["kimikl"] = kimikl_term(lp, lr, batch, options)
    if "kimifull" in options.kl:
        terms["kimifull"] = kimifull_term(stats.kimifull, options)
    return terms


@torch.no_grad()
def _count(stats: TokenStats, batch: TokenBatch, report: LossReport) -> None:
    """What is logged whether or not it is in the loss: per token, before weights, scales and clips."""
    lp, lr = stats.logprobs, stats.ref_logprobs
    report.add("num_tokens", batch.live.sum())
    seen = {"entropy": stats.entropy}
    if lr is not None and stats.kimifull is not None:
        seen |= {"kl_k1": k1(lp, lr), "kl_k3": k3(lp, lr), "kl_kimikl": kimikl(lp, lr), "kl_kimifull": stats.kimifull}
    for name, values in seen.items():
        report.add(name, torch.where(batch.live, values, 0.0).sum())
