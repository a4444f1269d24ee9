"""A step small enough to write out: hidden states and heads of two models, and the loss as its definitions read.

The naive side materialises full logits in float64 and goes token by token; it shares no code with the learner's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmr1.config import RunConfig
from mmr1_learner.loss import LossReport, Projection, TokenBatch, compute_loss, token_stats, token_weights
from mmr1_learner.loss.token_stats import FORBIDDEN_BIAS

VOCABULARY, HIDDEN = 53, 16
LENGTHS = (5, 1, 7, 3, 4, 6)
ADVANTAGES = (1.3, -0.4, 0.0, 0.7, -1.1, 0.9)
TEMPERATURES = (0.7, 1.0, 1.3, 1.0, 0.9, 1.0)
DUMMY = 3  # a row of weight 0
EQUAL = 2  # of a group whose rewards are all equal: no policy term
OTHER_TASK = 4  # no kimikl term
FORBIDDEN = (2, 11)
EVERYTHING: dict[str, Any] = {
    "kl": ["k1", "k3", "kimikl", "kimifull"],
    "k1_threshold": 0.5,
    "entropy_reg": True,
    "kimi_tau": 0.3,
    "max_completion_length": 9,
}


@dataclass(frozen=True)
class Problem:
    """What one forward holds. `old`, `rollout` and `reference` are offsets from, and models beside, the policy."""

    hidden: Tensor  # [N, H]
    head: Tensor  # [V, H]
    ref_hidden: Tensor
    ref_head: Tensor
    targets: Tensor
    old: Tensor  # [N] lp_old - lp
    rollout: Tensor  # [N] lo - lp
    sequences: Tensor


def problem(seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sequences = torch.tensor([index for index, length in enumerate(LENGTHS) for _ in range(length)])
    total = len(sequences)
    hidden, head = normal(total, HIDDEN), normal(VOCABULARY, HIDDEN)
    return Problem(
        hidden=hidden,
        head=head,
        ref_hidden=hidden + 0.2 * normal(total, HIDDEN),
        ref_head=head + 0.1 * normal(VOCABULARY, HIDDEN),
        targets=torch.randint(12, VOCABULARY, (total,), generator=generator),
        old=0.3 * normal(total),
        rollout=1.2 * normal(total),
        sequences=sequences,
    )


def column(p: Problem, values: tuple[float, ...]) -> Tensor:
    """[N] of one value for each completion."""
    return torch.tensor(values, dtype=torch.float64)[p.sequences]


def ours(
    p: Problem, options: RunConfig, with_old: bool, dtype: torch.dtype = torch.float64, **changes: Any
) -> tuple[Tensor, LossReport, tuple[Tensor, Tensor]]:
    """The learner's loss, its report, and the gradients with respect to the hidden states and the head."""
    hidden, head = (tensor.detach().to(dtype).requires_grad_() for tensor in (p.hidden, p.head))
    reference = Projection(p.ref_hidden.to(dtype), p.ref_head.to(dtype))
    stats = token_stats(
        hidden,
        head,
        p.targets,
        column(p, TEMPERATURES).to(dtype),
        torch.tensor(FORBIDDEN),
        chunk_tokens=4,
        reference=reference,
    )
    lp = stats.logprobs.detach()
    live = [index for index in range(len(LENGTHS)) if index != DUMMY]
    weights = dict(zip(live, token_weights([LENGTHS[index] for index in live], options), strict=True))
    batch = TokenBatch(
        rollout_logprobs=lp + p.rollout.to(dtype),
        old_logprobs=lp + p.old.to(dtype) if with_old else None,
        advantages=column(p, ADVANTAGES).to(dtype),
        weights=column(p, tuple(weights.get(index, 0.0) for index in range(len(LENGTHS)))).to(dtype),
        on_policy=(p.sequences == 1).to(dtype),
        in_policy_term=(p.sequences != EQUAL).to(dtype),
        in_kimikl=(p.sequences != OTHER_TASK).to(dtype),
        sequences=p.sequences,
        num_sequences=len(LENGTHS),
    )
    loss, report = compute_loss(stats, replace(batch, **changes), options)
    loss.backward()
    assert hidden.grad is not None and head.grad is not None
    return loss.detach(), report, (hidden.grad, head.grad)


def naive(p: Problem, o: RunConfig, with_old: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The same from full logits, token by token."""
    hidden, head = p.hidden.clone().requires_grad_(), p.head.clone().requires_grad_()
    logpi, logref = (distribution(p, *model) for model in ((hidden, head), (p.ref_hidden, p.ref_head)))
    place = torch.arange(len(p.targets))
    lp, lr = logpi[place, p.targets], logref[place, p.targets]
    entropy = -(logpi.exp() * logpi).sum(1)
    kimifull = (logpi.exp() * (logpi - logref)).sum(1)
    old = (lp + p.old if with_old else lp).detach()
    rollout = (lp + p.rollout).detach()
    live = [index for index in range(len(LENGTHS)) if index != DUMMY]
    loss = torch.zeros((), dtype=torch.float64)
    for index in live:
        tokens = [t for t in range(len(lp)) if p.sequences[t] == index]
        share = {
            "sequence_mean": 1 / (LENGTHS[index] * len(live)),
            "token_mean": 1 / sum(LENGTHS[other] for other in live),
            "constant": 1 / (o.max_completion_length * len(live)),
        }[o.aggregation]
        scale = 1 / (1 + o.k3_adaptive_factor * entropy[tokens].mean().detach())
        for t in tokens:
            term = torch.zeros((), dtype=torch.float64)
            if index != EQUAL:
                w = _weight(o, old[tokens] - rollout[tokens], tokens.index(t))
                term = _policy(o, ADVANTAGES[index], w, lp[tokens], old[tokens], rollout[tokens], tokens.index(t))
            d = lp[t] - lr[t].detach()
            if "k1" in o.kl:
                term = term + o.k1_weight * torch.clamp(d, -o.k1_threshold, o.k1_threshold)
            if "k3" in o.kl:
                term = term + o.k3_weight * scale * (torch.exp(-d) + d - 1)
            if "kimikl" in o.kl and index != OTHER_TASK:
                term = term + o.kimikl_weight * 0.5 * d**2
            if "kimifull" in o.kl:
                term = term + o.kimifull_weight * kimifull[t]
            if o.entropy_reg:
                term = term - o.entropy_weight * entropy[t]
            loss = loss + share * term
    gradients = torch.autograd.grad(loss, (hidden, head))
    return loss.detach(), gradients


def distribution(p: Problem, hidden: Tensor, head: Tensor) -> Tensor:
    bias = torch.zeros(VOCABULARY, dtype=torch.float64)
    bias[list(FORBIDDEN)] = FORBIDDEN_BIAS
    return ((hidden @ head.T + bias) / column(p, TEMPERATURES)[:, None]).log_softmax(1)


def _weight(o: RunConfig, gaps: Tensor, t: int) -> Tensor:
    w = torch.exp(gaps[t])
    nothing = torch.zeros((), dtype=torch.float64)
    if o.importance_correction == "tis":
        return torch.clamp(w, max=o.tis_bound)
    if o.importance_correction == "icepop":
        return w if o.icepop_low <= w <= o.icepop_high else nothing
    if o.importance_correction == "sequence_mask":
        return w if gaps.abs().mean() <= o.sequence_mask_bound else nothing
    return torch.ones((), dtype=torch.float64)


def _policy(o: RunConfig, a: float, w: Tensor, lp: Tensor, old: Tensor, rollout: Tensor, t: int) -> Tensor:
    """The policy term of token `t` of one response, whose log-probabilities are given."""
    rho = torch.exp(lp[t] - old[t])
    if o.objective == "gspo":
        rho = torch.exp((lp - old).mean())
    if o.objective == "cispo":
        return -w * torch.clamp(rho, 0, 1 + o.clip_high).detach() * a * lp[t]
    if o.objective == "rloo":
        return -w * a * lp[t]
    if o.objective == "kimi":
        return -(a * lp.sum()) + o.kimi_tau / 2 * (lp.sum() - rollout.sum()) ** 2
    return -w * torch.minimum(rho * a, torch.clamp(rho, 1 - o.clip_low, 1 + o.clip_high) * a)
