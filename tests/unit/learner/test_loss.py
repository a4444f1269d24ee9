"""The objective against a naive float64 implementation that materialises everything: values and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmr1_learner.loss import TokenBatch, compute_loss, group_advantages, token_stats
from mmr1_learner.loss.token_stats import FORBIDDEN_BIAS
from tests.models import small_config

VOCABULARY, HIDDEN = 53, 16
LENGTHS = (5, 1, 7, 3)
FORBIDDEN = (2, 11)


def problem(seed: int = 0) -> dict[str, torch.Tensor]:
    """Hidden states, targets and the log-probabilities of others, of four completions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(LENGTHS)
    sequences = torch.tensor([index for index, length in enumerate(LENGTHS) for _ in range(length)])
    lengths = torch.tensor(LENGTHS)[sequences]
    advantages = torch.tensor([1.3, -0.4, 0.0, -1.1])[sequences]
    weights = 1.0 / (lengths * len(LENGTHS))
    weights[sequences == 3] = 0.0  # a dummy takes no part
    return {
        "hidden": torch.randn(total, HIDDEN, generator=generator, dtype=torch.float64),
        "head": torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64),
        "targets": torch.randint(12, VOCABULARY, (total,), generator=generator),
        "temperatures": torch.tensor([0.7, 1.0, 1.3, 1.0], dtype=torch.float64)[sequences],
        "noise_rollout": torch.randn(total, generator=generator, dtype=torch.float64),
        "noise_old": 0.3 * torch.randn(total, generator=generator, dtype=torch.float64),
        "noise_ref": 0.5 * torch.randn(total, generator=generator, dtype=torch.float64),
        "sequences": sequences,
        "advantages": advantages.double(),
        "weights": weights.double(),
    }


def naive(p: dict[str, torch.Tensor], options: Any, with_old: bool) -> torch.Tensor:
    """Token by token, as the definitions read."""
    logits = p["hidden"] @ p["head"].T
    logits[:, list(FORBIDDEN)] += FORBIDDEN_BIAS
    logits = logits / p["temperatures"][:, None]
    distribution = logits.softmax(-1)
    lp = distribution[torch.arange(len(logits)), p["targets"]].log()
    entropy = -(distribution * logits.log_softmax(-1)).sum(-1)
    loss = torch.zeros((), dtype=torch.float64)
    for sequence in range(len(LENGTHS)):
        tokens = [t for t in range(len(logits)) if p["sequences"][t] == sequence]
        live = [t for t in tokens if p["weights"][t] > 0]
        if not live:
            continue
        scale = 1 / (1 + options.k3_adaptive_factor * entropy[live].mean().detach())
        for t in live:
            old = (lp[t] + p["noise_old"][t]).detach() if with_old else lp[t].detach()
            rollout = (lp[t] + p["noise_rollout"][t]).detach()
            w = torch.exp(old - rollout)
            w = torch.clamp(w, max=options.tis_bound) if options.importance_correction == "tis" else torch.ones(())
            rho = torch.exp(lp[t] - old)
            clipped = torch.clamp(rho, 1 - options.clip_low, 1 + options.clip_high)
            a = p["advantages"][t]
            term = -w * torch.minimum(rho * a, clipped * a)
            if options.kl:
                d = lp[t] - (lp[t] + p["noise_ref"][t]).detach()
                term = term + options.k3_weight * scale * (torch.exp(-d) + d - 1)
            loss = loss + p["weights"][t] * term
    return loss


@pytest.mark.parametrize("correction", ["none", "tis"])
@pytest.mark.parametrize("kl", [[], ["k3"]])
@pytest.mark.parametrize("with_old", [False, True])
def test_the_objective_equals_the_naive_one(correction: str, kl: list[str], with_old: bool, tmp_path: Any) -> None:
    options = small_config(tmp_path, importance_correction=correction, kl=kl, k3_weight=0.3)
    p = problem()
    p["hidden"].requires_grad_(True)
    expected = naive(p, options, with_old)
    (expected_grad,) = torch.autograd.grad(expected, p["hidden"])

    hidden = p["hidden"].detach().float().requires_grad_(True)
    stats = token_stats(
        hidden, p["head"].float(), p["targets"], p["temperatures"].float(), torch.tensor(FORBIDDEN), chunk_tokens=3
    )
    lp = stats.logprobs.detach()
    batch = TokenBatch(
        rollout_logprobs=lp + p["noise_rollout"].float(),
        old_logprobs=lp + p["noise_old"].float() if with_old else None,
        ref_logprobs=lp + p["noise_ref"].float() if kl else None,
        advantages=p["advantages"].float(),
        weights=p["weights"].float(),
        on_policy=(p["sequences"] == 1).float(),
        sequences=p["sequences"],
        num_sequences=len(LENGTHS),
    )
    loss, report = compute_loss(stats, batch, options)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad.double(), expected_grad, rtol=1e-3, atol=1e-6)
    assert report.sums["num_tokens"] == sum(LENGTHS) - LENGTHS[3]
    assert report.sums["loss"] == pytest.approx(loss.item())
    live, current = p["weights"] > 0, p["sequences"] == 1
    gap = (p["noise_old"] if with_old else torch.zeros(())) - p["noise_rollout"]
    divergence = gap.exp() - 1 - gap
    assert report.sums["off_policy_kl"] == pytest.approx(float(divergence[live].sum()), rel=1e-4)
    assert report.sums["mismatch_kl"] == pytest.approx(float(divergence[live & current].sum()), rel=1e-4)
    assert report.sums["on_policy_tokens"] == LENGTHS[1]


def test_the_clip_acts_only_once_the_policy_has_moved(tmp_path: Any) -> None:
    """On the first update rho is exactly 1: nothing is clipped, and the gradient is -A/weight."""
    options = small_config(tmp_path, kl=[], importance_correction="none")
    p = problem()
    stats = token_stats(
        p["hidden"].float(), p["head"].float(), p["targets"], p["temperatures"].float(), torch.tensor(FORBIDDEN)
    )
    fields = {
        "rollout_logprobs": stats.logprobs,
        "ref_logprobs": None,
        "advantages": p["advantages"].float(),
        "weights": p["weights"].float(),
        "on_policy": torch.ones(len(p["weights"])),
        "sequences": p["sequences"],
        "num_sequences": len(LENGTHS),
    }
    _, first = compute_loss(stats, TokenBatch(old_logprobs=None, **fields), options)
    _, later = compute_loss(
        stats, TokenBatch(old_logprobs=stats.logprobs - 0.5 * p["advantages"].float(), **fields), options
    )
    assert first.sums["clipped_tokens"] == 0
    assert later.sums["clipped_tokens"] > 0


def test_no_tensor_of_tokens_by_vocabulary_is_kept_for_the_backward_pass() -> None:
    """Memory grows with the chunk, not with the tokens: what autograd saves never has [tokens, vocabulary] elements."""
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    tokens, vocabulary = 256, 5000
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    head = torch.randn(vocabulary, HIDDEN, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_stats(hidden, head, torch.zeros(tokens, dtype=torch.long), torch.ones(tokens), torch.tensor([1]), 32)
    assert max(saved, default=0) <= vocabulary * HIDDEN


def test_advantages_leave_out_what_has_no_reward() -> None:
    assert group_advantages([1.0, None, 0.0, None]) == pytest.approx(
        [0.5 / (math.sqrt(0.5) + 1e-4), None, -0.5 / (math.sqrt(0.5) + 1e-4), None]
    )
    assert group_advantages([1.0, None, None]) is None
    assert group_advantages([0.3, 0.3, 0.3]) == pytest.approx([0.0, 0.0, 0.0])
