"""The objective against a naive float64 implementation that materialises everything: values and gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from mmr1.config import RunConfig
from mmr1_learner.loss import LossReport, group_advantages, means, token_stats
from mmr1_learner.loss.k3 import k3
from tests.models import small_config
from tests.unit.learner.loss_problem import (
    ADVANTAGES,
    DUMMY,
    EQUAL,
    EVERYTHING,
    LENGTHS,
    column,
    distribution,
    naive,
    ours,
    problem,
)


def choices(option: str) -> tuple[str, ...]:
    return get_args(RunConfig.model_fields[option].annotation)


OBJECTIVES = choices("objective")


@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize("aggregation", choices("aggregation"))
@pytest.mark.parametrize("correction", choices("importance_correction"))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_equals_the_naive_one(
    objective: str, correction: str, aggregation: str, with_old: bool, tmp_path: Path
) -> None:
    """Correction, all divergences, entropy and masks on; at the first update of a batch and at a later one."""
    options = small_config(
        tmp_path, objective=objective, importance_correction=correction, aggregation=aggregation, **EVERYTHING
    )
    p = problem()
    expected, expected_gradients = naive(p, options, with_old)
    loss, report, gradients = ours(p, options, with_old)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-11)
    parts = [value for name, value in report.sums.items() if name.endswith("_loss")]
    assert len(parts) == 6 and sum(parts) == pytest.approx(loss.item()) == pytest.approx(report.sums["loss"])


@pytest.mark.parametrize("difference", [-25.0, -20.5, -19.0, 0.0, 19.0, 21.0, 40.0, 200.0])
def test_k3_is_cut_only_where_its_exponential_would_overflow(difference: float) -> None:
    """In both precisions; a gradient must never point away from the reference, as that of `d` alone would below -20."""
    held = max(difference, -20.0)
    for dtype in (torch.float64, torch.float32):
        lp = torch.tensor([difference - 3.0], dtype=dtype, requires_grad=True)
        value = k3(lp, torch.tensor([-3.0], dtype=dtype))
        value.backward()
        gradient = 1 - math.exp(-difference) if held == difference else 0.0
        assert lp.grad is not None and lp.grad.item() == pytest.approx(gradient, rel=1e-5)
        assert value.item() == pytest.approx(math.exp(-held) + held - 1, rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_single_precision_is_close_to_it(objective: str, tmp_path: Path) -> None:
    options = small_config(tmp_path, objective=objective, **EVERYTHING)
    p = problem(seed=1)
    expected, expected_gradients = naive(p, options, with_old=True)
    loss, _, gradients = ours(p, options, with_old=True, dtype=torch.float32)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(tuple(g.double() for g in gradients), expected_gradients, rtol=1e-3, atol=1e-5)


def test_the_report_says_what_the_tokens_were(tmp_path: Path) -> None:
    """Divergences before weights, scales and clips, over live tokens; what is in no term is logged all the same."""
    constant = torch.ones(len(problem().targets), dtype=torch.float64)
    p = replace(problem(), old=-0.2 * constant, rollout=-0.5 * constant)
    live = p.sequences != DUMMY
    logpi, logref = distribution(p, p.hidden, p.head), distribution(p, p.ref_hidden, p.ref_head)
    d = (logpi - logref).gather(1, p.targets[:, None])[:, 0]
    expected = {
        "kl_k1": d,
        "kl_k3": torch.exp(-d) + d - 1,
        "kl_kimikl": d**2 / 2,
        "kl_kimifull": (logpi.exp() * (logpi - logref)).sum(1),
        "entropy": -(logpi.exp() * logpi).sum(1),
        "mismatch_kl": torch.full_like(d, math.exp(0.3) - 1 - 0.3),
        "off_policy_kl": torch.full_like(d, math.exp(0.3) - 1 - 0.3),
        "clip_fraction": (column(p, ADVANTAGES) > 0) & (p.sequences != EQUAL),
    }
    for kl in ([], EVERYTHING["kl"]):
        options = small_config(tmp_path, **EVERYTHING | {"kl": kl, "entropy_reg": False})
        _, report, _ = ours(p, options, with_old=True)
        found = means(report.sums)
        for name, values in expected.items():
            assert found[name] == pytest.approx(values[live].double().mean().item()), name
        assert found["num_tokens"] == sum(LENGTHS) - LENGTHS[DUMMY]
        assert [math.isnan(found[f"{term}_loss"]) for term in ("k1", "k3", "kimikl", "kimifull")] == [not kl] * 4
        assert math.isnan(found["entropy_loss"])
        for name, logarithm in (("ratio", 0.2), ("importance", 0.3)):
            for label in ("p01", "p50", "p99"):
                assert math.log(found[f"{name}_{label}"]) == pytest.approx(logarithm, rel=0.07), (name, label)


def test_quantiles_of_many_ratios_are_within_six_percent_of_their_logarithm(tmp_path: Path) -> None:
    report = LossReport()
    logarithms = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.3
    for part in logarithms.split(7_000):  # forwards and ranks add up
        other = LossReport()
        other.add_ratios("ratio", part, torch.ones(len(part), dtype=torch.bool))
        report.merge(other)
    report.add_ratios("importance", torch.tensor([0.0, 0.0, 3.0]), torch.tensor([True, True, False]))
    totals = {"num_tokens": 1.0, "on_policy_tokens": 0.0, "loss": 0.0, "entropy": 0.0, "clipped_tokens": 0.0}
    found = means({**totals, "off_policy_kl": 0.0, "mismatch_kl": 0.0, **report.sums})
    for label, share in (("p01", 0.01), ("p50", 0.5), ("p99", 0.99)):
        exact = logarithms.double().quantile(share).item()
        assert torch.tensor(found[f"ratio_{label}"]).log().item() == pytest.approx(exact, rel=0.07)
        assert found[f"importance_{label}"] == 1.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_clip_acts_only_once_the_policy_has_moved(objective: str, tmp_path: Path) -> None:
    """On the first update rho is exactly 1: nothing is clipped."""
    options = small_config(tmp_path, objective=objective, **EVERYTHING)
    p = problem()
    _, first, _ = ours(p, options, with_old=False)
    _, later, _ = ours(p, options, with_old=True)
    assert first.sums["clipped_tokens"] == 0
    assert (later.sums["clipped_tokens"] > 0) == (objective not in ("rloo", "kimi"))


def test_a_forward_without_tokens_has_statistics_of_none() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    stats = token_stats(hidden, torch.zeros(6, 4), torch.zeros(0, dtype=torch.long), torch.ones(0), torch.tensor([1]))
    assert stats.logprobs.shape == stats.entropy.shape == (0,)
    assert stats.ref_logprobs is None and stats.kimifull is None


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("grpo", [0.5 / (0.5**0.5 + 1e-4), None, -0.5 / (0.5**0.5 + 1e-4), None]),
        ("dr_grpo", [0.5, None, -0.5, None]),
        ("kimi", [0.5, None, -0.5, None]),
        ("rloo", [1.0, None, -1.0, None]),
    ],
)
def test_advantages_leave_out_what_has_no_reward(objective: str, expected: list[Any]) -> None:
    assert group_advantages([1.0, None, 0.0, None], objective) == pytest.approx(expected)
    assert group_advantages([1.0, None, None], objective) is None
    assert group_advantages([0.3, 0.3, None, 0.3], objective) == [0.0, 0.0, None, 0.0], "exactly"


def test_rloo_takes_the_mean_of_the_others() -> None:
    rewards = [0.1, 0.9, 0.4]
    expected = [0.1 - 0.65, 0.9 - 0.25, 0.4 - 0.5]
    assert group_advantages(rewards, "rloo") == pytest.approx(expected)
