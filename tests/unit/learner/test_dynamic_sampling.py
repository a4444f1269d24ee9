"""Which groups make a step when rewards are equal or answers too long: on a real Redis, with accounts that balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmr1.dataset import DataOrder
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1.records import FinishReason, Group, Problem, Prompt, PromptId
from mmr1_learner.prompts import PromptFactory
from tests.models import small_config
from tests.unit.learner.run_of_a_test import PER_STEP, STEPS, Run, places

Rewards = Callable[[Prompt], tuple[float | None, ...]]
EQUAL, DIFFERENT = (1.0, 1.0), (1.0, 0.0)


def first_attempts_are_equal(prompt: Prompt) -> tuple[float | None, ...]:
    return DIFFERENT if prompt.id.attempt else EQUAL


def test_the_place_of_a_group_with_equal_rewards_is_sampled_anew(redis_url: str, tmp_path: Path) -> None:
    """Also where a divergence would give it something to learn from: who asks for variance gets it."""
    run = Run(redis_url, tmp_path, dynamic_sampling=True, kl=["k3"])
    learner = run.learner()
    groups = learner.collect(rewards=first_attempts_are_equal)
    assert sorted(group.prompt.id for group in groups) == [PromptId("test", place, 1) for place in range(PER_STEP)]
    assert learner.queue.ledger().balanced
    learner.finish(rewards=first_attempts_are_equal)
    ledger = learner.queue.ledger()
    assert ledger.dropped == {"no_variance": STEPS * PER_STEP}
    assert ledger.fed == 2 * STEPS * PER_STEP and ledger.trained == STEPS * PER_STEP
    assert places(run) == list(range(STEPS * PER_STEP))


@pytest.mark.parametrize("durable", [False, True])
def test_a_learner_that_dies_while_it_samples_anew_loses_no_place(
    durable: bool, redis_url: str, tmp_path: Path
) -> None:
    run = Run(redis_url, tmp_path, dynamic_sampling=True)
    first = run.learner()
    first.collect(rewards=first_attempts_are_equal)
    if durable:
        first.save()
    second = run.learner()
    second.finish(rewards=first_attempts_are_equal)
    assert places(run) == list(range(STEPS * PER_STEP))
    assert {id_.attempt for id_ in run.trained} == {1}


def test_what_never_differs_ends_the_run_by_name(redis_url: str, tmp_path: Path) -> None:
    run = Run(redis_url, tmp_path, dynamic_sampling=True, dynamic_sampling_limit=3)
    learner = run.learner()
    with pytest.raises(
        ConfigurationError, match=r"dynamic_sampling: 8 groups in a row had equal rewards; the problems"
    ):
        learner.collect(rewards=lambda _: EQUAL)
    ledger = learner.queue.ledger()
    assert ledger.balanced and ledger.dropped == {"no_variance": 3 * PER_STEP + PER_STEP}


def test_a_place_that_never_differs_stays_empty_after_the_limit(redis_url: str, tmp_path: Path) -> None:
    run = Run(redis_url, tmp_path, dynamic_sampling=True, dynamic_sampling_limit=2)
    learner = run.learner()
    groups = learner.collect(rewards=lambda prompt: DIFFERENT if prompt.id.position == 1 else EQUAL)
    assert [group.prompt.id.position for group in groups] == [1]
    ledger = learner.queue.ledger()
    assert ledger.balanced and ledger.dropped == {"no_variance": 2 * PER_STEP + 1}
    learner.finish()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"kl": ["kimifull"]}, True),
        ({"kl": []}, False),
        ({"k3_weight": 0.0}, False),
        ({"kl": [], "entropy_reg": True}, True),
        ({"kl": [], "entropy_reg": True, "entropy_weight": 0.0}, False),
        ({"kl": [], "overlong": "shape", "overlong_buffer": 6}, False),  # both answers are 3 tokens of 8
    ],
)
def test_equal_rewards_are_kept_for_what_else_is_in_the_loss(
    options: dict[str, Any], kept: bool, redis_url: str, tmp_path: Path
) -> None:
    learner = Run(redis_url, tmp_path, **options).learner()
    groups = learner.collect(rewards=lambda _: EQUAL)
    assert len(groups) == (PER_STEP if kept else 0)
    assert learner.queue.ledger().dropped == ({} if kept else {"no_variance": PER_STEP})


def cut_off(learner: Any, num_rollouts: int) -> None:
    """The first answers of every group that is read end because they are too long."""
    read = learner.queue.read

    def read_cut(count: int) -> list[Group]:
        groups = []
        for group in read(count):
            cut = tuple(replace(one, finish_reason=FinishReason.LENGTH) for one in group.rollouts[:num_rollouts])
            groups.append(replace(group, rollouts=(*cut, *group.rollouts[num_rollouts:])))
        return groups

    learner.queue.read = read_cut


def test_a_group_without_two_answers_that_end_is_dropped_and_a_run_of_such_ends_by_name(
    redis_url: str, tmp_path: Path
) -> None:
    learner = Run(redis_url, tmp_path, overlong="mask").learner()
    cut_off(learner, 1)
    for _ in range(2):
        assert learner.collect() == []
    with pytest.raises(ConfigurationError, match=r"overlong mask: all completions of 3 steps .*_length 8; raise it"):
        learner.collect()
    ledger = learner.queue.ledger()
    assert ledger.balanced and ledger.dropped == {"overlong": 3 * PER_STEP}


def test_what_is_cut_off_is_trained_on_when_nobody_masks_it(redis_url: str, tmp_path: Path) -> None:
    learner = Run(redis_url, tmp_path).learner()
    cut_off(learner, 2)
    assert len(learner.collect()) == PER_STEP


def first_attempts_have_no_score(prompt: Prompt) -> tuple[float | None, ...]:
    return DIFFERENT if prompt.id.attempt else (None, None)


def test_the_place_of_a_group_that_cannot_be_scored_is_sampled_anew(redis_url: str, tmp_path: Path) -> None:
    run = Run(redis_url, tmp_path, dynamic_sampling=True)
    learner = run.learner()
    groups = learner.collect(rewards=first_attempts_have_no_score)
    assert sorted(group.prompt.id for group in groups) == [PromptId("test", place, 1) for place in range(PER_STEP)]
    learner.finish(rewards=first_attempts_have_no_score)
    assert learner.queue.ledger().dropped == {"unscored": STEPS * PER_STEP}
    assert places(run) == list(range(STEPS * PER_STEP))


def test_the_place_of_a_group_whose_image_has_changed_is_sampled_anew(redis_url: str, tmp_path: Path) -> None:
    run = Run(redis_url, tmp_path, dynamic_sampling=True)
    learner = run.learner()
    learner.source.feed()
    run.serve()
    Image.new("L", (56, 56)).save(tmp_path / "a.png")
    run.prompts._image = ImageStore(tmp_path).ref("a.png")  # a factory looks at the file each time
    assert len(learner.collect()) == PER_STEP
    learner.finish()
    assert set(learner.queue.ledger().dropped) == {"image"}


def spoil(learner: Any, logprob: float, attempts: int) -> None:
    """One log-probability of the last answer of every group is no number, in the first so many attempts at a place."""
    read = learner.queue.read

    def read_spoiled(count: int) -> list[Group]:
        groups = []
        for group in read(count):
            *others, last = group.rollouts
            spoiled = replace(last, logprobs=(*last.logprobs[:-1], logprob))
            bad = group.prompt.id.attempt < attempts
            groups.append(replace(group, rollouts=(*others, spoiled)) if bad else group)
        return groups

    learner.queue.read = read_spoiled


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf")])
def test_the_place_of_a_group_without_finite_log_probabilities_is_sampled_anew(
    logprob: float, redis_url: str, tmp_path: Path
) -> None:
    run = Run(redis_url, tmp_path, dynamic_sampling=True)
    learner = run.learner()
    spoil(learner, logprob, attempts=1)
    groups = learner.collect()
    assert sorted(group.prompt.id for group in groups) == [PromptId("test", place, 1) for place in range(PER_STEP)]
    learner.finish()
    ledger = learner.queue.ledger()
    assert ledger.dropped == {"not_finite": STEPS * PER_STEP} and ledger.fed == 2 * STEPS * PER_STEP
    assert places(run) == list(range(STEPS * PER_STEP))


@pytest.mark.parametrize("dynamic_sampling", [False, True])
def test_a_sampler_that_never_gives_finite_log_probabilities_ends_the_run_by_name(
    dynamic_sampling: bool, redis_url: str, tmp_path: Path
) -> None:
    """Sampled anew up to the limit of each step, and after three steps without a group it is the sampler's fault."""
    run = Run(redis_url, tmp_path, dynamic_sampling=dynamic_sampling, dynamic_sampling_limit=2)
    learner = run.learner()
    spoil(learner, float("nan"), attempts=100)
    for _ in range(2):
        assert learner.collect() == []
    with pytest.raises(
        ConfigurationError, match=r"no group of 3 steps came with finite log-probabilities: the rollout"
    ):
        learner.collect()
    looked_at = PER_STEP * (1 + 2 * dynamic_sampling)
    ledger = learner.queue.ledger()
    assert ledger.balanced and ledger.dropped == {"not_finite": 3 * looked_at}


def test_one_limit_holds_for_all_reasons_together(redis_url: str, tmp_path: Path) -> None:
    """Place 0 never differs, place 1 is never scored; both are looked at anew as often as the step allows."""
    run = Run(redis_url, tmp_path, dynamic_sampling=True, dynamic_sampling_limit=2)
    learner = run.learner()
    assert learner.collect(rewards=lambda prompt: (None, None) if prompt.id.position else EQUAL) == []
    ledger = learner.queue.ledger()
    assert ledger.balanced and sum(ledger.dropped.values()) == 2 * PER_STEP + PER_STEP
    assert set(ledger.dropped) == {"no_variance", "unscored"}


def test_the_place_of_answers_that_are_all_too_long_is_sampled_anew(redis_url: str, tmp_path: Path) -> None:
    learner = Run(redis_url, tmp_path, dynamic_sampling=True, dynamic_sampling_limit=1, overlong="mask").learner()
    cut_off(learner, 1)
    assert learner.collect() == []
    ledger = learner.queue.ledger()
    assert ledger.balanced and ledger.dropped == {"overlong": 2 * PER_STEP}


@pytest.mark.parametrize("dynamic_sampling", [False, True])
def test_another_attempt_asks_another_problem_only_to_find_variance(dynamic_sampling: bool, small_model: Path) -> None:
    config = small_config(small_model, dynamic_sampling=dynamic_sampling, seed=3)
    problems = [Problem(index, f"Question {index}?", index, (), "counting") for index in range(50)]
    factory = PromptFactory(config, problems, ())
    order = DataOrder(50, 3)
    asked = [
        Counter(factory.training(PromptId("run", place, attempt)).problem for place in range(8)) for attempt in (0, 1)
    ]
    assert asked[0] == Counter(f"Question {order.index(place)}?" for place in range(8))
    assert (asked[0] == asked[1]) != dynamic_sampling
    first, again = (factory.training(PromptId("run", 5, 1)) for _ in range(2))
    assert first == again, "a place that Redis has forgotten can be fed again"
