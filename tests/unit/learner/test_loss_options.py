"""What each option of the objective does: turned on, it changes loss, gradient or schedule as its definition says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmr1.config import RunConfig
from mmr1.config.objective import ObjectiveOptions
from mmr1.config.options import SamplingOptions
from mmr1.records import FinishReason, Group, Rollout
from mmr1_learner.group_rewards import training_rewards
from mmr1_learner.plan import Sample, StepPlan, cut
from tests.conftest import make_group, make_prompt
from tests.models import small_config
from tests.unit.learner import loss_problem
from tests.unit.learner.loss_problem import DUMMY, EQUAL, LENGTHS, OTHER_TASK, column, distribution, ours, problem
from tests.unit.learner.named_tests import missing_tests

P = problem()
D = (distribution(P, P.hidden, P.head) - distribution(P, P.ref_hidden, P.ref_head)).gather(1, P.targets[:, None])[:, 0]
LIVE = P.sequences != DUMMY
GAP = P.old - P.rollout


@dataclass(frozen=True)
class Case:
    """An option turned from `off` to `on`, and the tokens whose part of the loss its definition says must change."""

    option: str
    off: Any
    on: Any
    touched: Tensor  # [N] True where the gradient of the hidden state changes
    among: dict[str, Any]  # other options


POLICY = LIVE & (P.sequences != EQUAL)
A = column(P, (1.3, -0.4, 0.0, 0.7, -1.1, 0.9))
RHO = torch.exp(-P.old)


def means_of_gap() -> Tensor:
    return torch.stack([GAP[P.sequences == index].abs().mean() for index in range(len(LENGTHS))])[P.sequences]


PLAIN: dict[str, Any] = {"kl": [], "importance_correction": "none"}
KL_ONLY: dict[str, Any] = {**PLAIN, "objective": "rloo"}
CASES = [
    Case("kl", [], ["k1"], LIVE, PLAIN),
    Case("kl", [], ["k3"], LIVE, PLAIN),
    Case("kl", [], ["kimikl"], LIVE & (P.sequences != OTHER_TASK), PLAIN),
    Case("kl", [], ["kimifull"], LIVE, PLAIN),
    Case("k1_weight", 0.1, 0.3, LIVE, {**PLAIN, "kl": ["k1"]}),
    Case("k1_threshold", 10.0, 0.5, LIVE & (D.abs() > 0.5), {**PLAIN, "kl": ["k1"]}),
    Case("k3_weight", 0.2, 0.4, LIVE, {**PLAIN, "kl": ["k3"]}),
    Case("k3_adaptive_factor", 0.0, 0.5, LIVE, {**PLAIN, "kl": ["k3"]}),
    Case("kimikl_weight", 0.1, 0.2, LIVE & (P.sequences != OTHER_TASK), {**PLAIN, "kl": ["kimikl"]}),
    Case("kimifull_weight", 0.05, 0.1, LIVE, {**PLAIN, "kl": ["kimifull"]}),
    Case("entropy_reg", False, True, LIVE, PLAIN),
    Case("entropy_weight", 0.01, -0.01, LIVE, {**PLAIN, "entropy_reg": True}),
    Case("clip_low", 0.9, 0.01, POLICY & (A < 0) & (RHO < 0.99) & (RHO > 0.1), PLAIN),
    Case("clip_high", 0.2, 0.01, POLICY & (A > 0) & (RHO > 1.01) & (RHO < 1.2), PLAIN),
    Case("clip_high", 0.2, 0.01, POLICY & (RHO > 1.01), {**PLAIN, "objective": "cispo"}),
    Case("importance_correction", "none", "tis", POLICY, KL_ONLY),
    Case("importance_correction", "none", "icepop", POLICY, KL_ONLY),
    Case("importance_correction", "none", "sequence_mask", POLICY, KL_ONLY),
    Case("tis_bound", 2.0, 1.5, POLICY & (GAP.exp() > 1.5), {**KL_ONLY, "importance_correction": "tis"}),
    Case(
        "icepop_low",
        0.5,
        0.1,
        POLICY & (GAP.exp() < 0.5) & (GAP.exp() >= 0.1),
        {**KL_ONLY, "importance_correction": "icepop"},
    ),
    Case(
        "icepop_high",
        2.0,
        4.0,
        POLICY & (GAP.exp() > 2) & (GAP.exp() <= 4),
        {**KL_ONLY, "importance_correction": "icepop"},
    ),
    Case(
        "sequence_mask_bound",
        1.0,
        0.5,
        POLICY & (means_of_gap() > 0.5) & (means_of_gap() <= 1.0),
        {**KL_ONLY, "importance_correction": "sequence_mask"},
    ),
    Case("kimi_tau", 0.1, 0.2, POLICY, {**PLAIN, "objective": "kimi"}),
    Case("aggregation", "sequence_mean", "token_mean", LIVE, {**KL_ONLY, "entropy_reg": True}),
    Case("aggregation", "sequence_mean", "constant", LIVE, {**KL_ONLY, "entropy_reg": True}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.option}-{case.on}")
def test_an_option_changes_the_gradient_of_the_tokens_it_is_about(case: Case, tmp_path: Path) -> None:
    gradients = []
    for value in (case.off, case.on):
        options = small_config(tmp_path, **{**case.among, case.option: value})
        gradients.append(ours(P, options, with_old=True)[2][0])
    changed = ((gradients[0] - gradients[1]).abs() > 1e-12).any(1)
    assert case.touched.any()
    assert changed.tolist() == case.touched.tolist()


@pytest.mark.parametrize("objective", ["dr_grpo", "dapo", "gspo", "cispo", "rloo", "kimi"])
def test_an_objective_is_another_gradient_than_grpo(objective: str, tmp_path: Path) -> None:
    (grpo, other) = (ours(P, small_config(tmp_path, objective=o), with_old=True)[2][0] for o in ("grpo", objective))
    assert (grpo - other).abs().max() > 1e-6


def test_more_entropy_is_what_a_positive_weight_asks_for(tmp_path: Path) -> None:
    """A step against the gradient moves each term the way its name says."""

    def after(watched: str, **options: Any) -> float:
        config = small_config(tmp_path, **{**PLAIN, "entropy_reg": False, **options})
        zero = torch.zeros_like(P.old)
        _, before, (gradient, _) = ours(P, config, with_old=False, advantages=zero)
        moved = replace(P, hidden=P.hidden - 0.05 * gradient / gradient.norm())
        _, report, _ = ours(moved, config, with_old=False, advantages=zero)
        return report.sums[watched] - before.sums[watched]

    assert after("entropy", entropy_reg=True) > 1e-4
    assert after("entropy", entropy_reg=True, entropy_weight=-0.01) < -1e-4
    for term in ("k1", "k3", "kimikl", "kimifull"):
        assert after(f"kl_{term}", kl=[term], k3_adaptive_factor=0.0) < -1e-4, term


def rollout(length: int, reward: float | None, finish: FinishReason = FinishReason.STOP) -> Rollout:
    one = make_group(make_prompt(), (reward,)).rollouts[0]
    return replace(one, token_ids=(7,) * length, logprobs=(-1.0,) * length, finish_reason=finish)


def group(*rollouts: Rollout, task: str = "counting") -> Group:
    return replace(make_group(replace(make_prompt(), task=task)), rollouts=rollouts)  # max_completion_length is 8


def samples(config: RunConfig, *groups: Group) -> list[Sample]:
    (updates,) = cut(StepPlan(0, groups), config, 1)
    return [sample for update in updates for forward in update for sample in forward]


WITHIN = (rollout(5, 1.0), rollout(7, 0.0), rollout(8, 0.0, FinishReason.LENGTH))


CONTRASTING = (group(rollout(2, 1.0), rollout(3, 1.0)), group(rollout(2, 0.0), rollout(3, 0.0)))


def schedule(config: RunConfig) -> list[float]:
    return [round(config.temperature_at(step, 5), 6) for step in range(5)]


SCHEDULES: list[tuple[dict[str, Any], Callable[[RunConfig], Any], Any]] = [
    ({}, schedule, [1.0] * 5),
    ({"temperature": 0.7}, schedule, [0.7] * 5),
    (
        {"temperature_func": "linear", "temperature_begin": 0.6, "temperature_end": 1.0},
        schedule,
        [0.6, 0.7, 0.8, 0.9, 1.0],
    ),
    ({"reward_scale": 3.0}, lambda c: training_rewards(group(*WITHIN), c), [3.0, 0.0, 0.0]),
    ({"overlong": "mask"}, lambda c: training_rewards(group(*WITHIN), c), [1.0, 0.0, None]),
    ({"overlong": "mask"}, lambda c: len(samples(c, group(*WITHIN))), 2),
    # The last 4 of 8 tokens: 5 tokens cost a quarter, 7 three quarters, 8 all.
    (
        {"overlong": "shape", "overlong_buffer": 4},
        lambda c: training_rewards(group(*WITHIN), c),
        [0.75, -0.75, -1.0],
    ),
    ({"overlong": "shape"}, lambda c: training_rewards(group(*WITHIN), c), [1.0, 0.0, -1.0]),
    (
        {"overlong": "shape", "reward_scale": 2.0},
        lambda c: training_rewards(group(rollout(8, 1.0), rollout(8, None)), c),
        [1.0, None],
    ),
    ({}, lambda c: [s.in_policy_term for s in samples(c, group(rollout(1, 0.5), rollout(2, 0.5)))], [False, False]),
    ({}, lambda c: [s.in_kimikl for s in samples(c, group(*WITHIN[:2], task="ocr"))], [True, True]),
    (
        {"kimikl_task_id": "counting"},
        lambda c: [s.in_kimikl for s in samples(c, group(*WITHIN[:2], task="ocr"), group(*WITHIN[:2]))],
        [False, False, True, True],
    ),
    ({}, lambda c: [s.weight for s in samples(c, group(*WITHIN[:2]))], [1 / 10, 1 / 14]),
    ({"aggregation": "token_mean"}, lambda c: [s.weight for s in samples(c, group(*WITHIN[:2]))], [1 / 12, 1 / 12]),
    ({"aggregation": "constant"}, lambda c: [s.weight for s in samples(c, group(*WITHIN[:2]))], [1 / 16, 1 / 16]),
    (
        {"num_updates_per_batch": 2},
        lambda c: [len(u) for u in cut(StepPlan(0, (group(*WITHIN[:2]),)), c, 1)[0]],
        [1, 1],
    ),
    ({"objective": "dr_grpo"}, lambda c: [s.advantage for s in samples(c, group(*WITHIN[:2]))], [0.5, -0.5]),
    (
        {"aggregation": "constant", "max_completion_length": 16},
        lambda c: [s.weight for s in samples(c, group(*WITHIN[:2]))],
        [1 / 32, 1 / 32],
    ),
    ({"reward_shuffle": False}, lambda c: [s.in_policy_term for s in samples(c, *CONTRASTING)], [False] * 4),
    ({"reward_shuffle": True}, lambda c: [s.in_policy_term for s in samples(c, *CONTRASTING)], [True] * 4),
]


@pytest.mark.parametrize(("options", "what", "expected"), SCHEDULES)
def test_an_option_changes_what_a_step_is_made_of(
    options: dict[str, Any], what: Callable[[RunConfig], Any], expected: Any, tmp_path: Path
) -> None:
    assert what(small_config(tmp_path, **options)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("sequence_mean", 0.2, 0.2, "none", False)),
        ({"objective": "dr_grpo"}, ("constant", 0.2, 0.2, "none", False)),
        ({"objective": "dapo"}, ("token_mean", 0.2, 0.28, "shape", True)),
        ({"objective": "gspo"}, ("sequence_mean", 3e-4, 4e-4, "none", False)),
        ({"objective": "cispo"}, ("token_mean", 0.2, 0.2, "none", False)),
        ({"objective": "rloo"}, ("sequence_mean", 0.2, 0.2, "none", False)),
        ({"objective": "kimi"}, ("sequence_mean", 0.2, 0.2, "none", False)),
        (
            {"objective": "dapo", "aggregation": "sequence_mean", "clip_high": 0.2, "dynamic_sampling": False},
            ("sequence_mean", 0.2, 0.2, "shape", False),
        ),
    ],
)
def test_an_objectives_own_defaults_give_way_to_what_is_given(
    given: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    config = small_config(tmp_path, **given)
    names = ("aggregation", "clip_low", "clip_high", "overlong", "dynamic_sampling")
    assert tuple(config.model_dump()[name] for name in names) == expected


def test_the_temperature_applies_to_all_that_is_scored(tmp_path: Path) -> None:
    """Hidden states and temperatures both halved: the same distributions, whatever is computed of them."""
    config = small_config(tmp_path, kl=["k1", "k3", "kimikl", "kimifull"], entropy_reg=True)
    half = replace(P, hidden=P.hidden / 2, ref_hidden=P.ref_hidden / 2)
    expected, report, _ = ours(P, config, with_old=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_problem, "TEMPERATURES", tuple(t / 2 for t in loss_problem.TEMPERATURES))
        again, other, _ = ours(half, config, with_old=True)
    assert again.item() == pytest.approx(expected.item(), rel=1e-6)
    for name in ("entropy", "kl_k1", "kl_k3", "kl_kimikl", "kl_kimifull"):
        assert other.sums[name] == pytest.approx(report.sums[name], rel=1e-6), name


_DYNAMIC = "learner/test_dynamic_sampling.py::"
ELSEWHERE = {
    "rewards": "learner/test_prompts.py::test_a_prompt_carries_how_it_is_sampled_and_scored",
    "reward_params": "learner/test_prompts.py::test_a_prompt_is_scored_by_its_own_rows_task",
    "num_generations": "learner/test_prompts.py::test_a_prompt_carries_how_it_is_sampled_and_scored",
    "top_p": "config/test_options.py::test_a_wrong_value_is_named_with_its_remedy",
    "stop": "learner/test_prompts.py::test_a_prompt_carries_how_it_is_sampled_and_scored",
    "max_prompt_length": "learner/test_prompt_lengths.py::test_the_one_long_text_is_found",
    "dynamic_sampling": f"{_DYNAMIC}test_the_place_of_a_group_with_equal_rewards_is_sampled_anew",
    "dynamic_sampling_limit": f"{_DYNAMIC}test_what_never_differs_ends_the_run_by_name",
    "orphan_groups": "learner/test_orphans.py::test_refeed_drops_orphans_with_a_reason_and_samples_their_places_anew",
}


def test_every_option_of_the_objective_is_in_a_test() -> None:
    """A new one needs a line in a table above, in which it is turned on; or one that says where else that is."""
    here = {case.option for case in CASES} | {"objective"}
    here |= {name for options, _, _ in SCHEDULES for name in options}
    assert {*ObjectiveOptions.model_fields, *SamplingOptions.model_fields} == here | ELSEWHERE.keys()
    assert missing_tests(ELSEWHERE.values()) == set()
