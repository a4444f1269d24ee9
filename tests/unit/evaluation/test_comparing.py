"""Two evaluations of the same problems: differences by hand, and intervals that are those of pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmr1.evaluation import Answer, compare, measure
from mmr1.evaluation.resampling import drawn_counts
from tests.unit.evaluation.test_measuring import answer


def counted(rewards: list[float]) -> list[Answer]:
    return [answer(place, "counting", 3, {"count": 3}, reward=reward) for place, reward in enumerate(rewards)]


def test_a_difference_is_taken_problem_by_problem() -> None:
    this, other = counted([1.0, 1.0, 0.0, 1.0] * 10), counted([1.0, 0.0, 0.0, 0.0] * 10)
    found = {row.metric: row for row in compare(this, other, seed=3, resamples=400)}
    row = found["accuracy"]
    assert (row.task, row.is_headline, row.is_clear) == ("counting", True, True)
    assert (row.this.value, row.other.value, row.difference.value) == (0.75, 0.25, 0.5)
    (measured,) = measure(this, seed=3, resamples=400)
    assert row.this == measured.metrics["accuracy"]
    (counts,) = drawn_counts(40, 400, 3)
    by_problem = np.array([a.reward - b.reward for a, b in zip(this, other, strict=True)])
    low, high = np.quantile(counts @ by_problem / 40, (0.025, 0.975))
    assert (row.difference.low, row.difference.high) == pytest.approx((low, high))


def test_what_both_find_hard_drops_out() -> None:
    rewards = [1.0, 0.0] * 50
    same = {row.metric: row for row in compare(counted(rewards), counted(rewards), seed=0)}["accuracy"]
    assert (same.difference.value, same.difference.low, same.difference.high) == (0.0, 0.0, 0.0)
    assert not same.is_clear and same.this.low is not None and same.this.low < 0.45


def test_average_precision_is_compared_too() -> None:
    """The one finds every box, the other none."""
    true = [{"bbox_2d": [0, 0, 10, 10], "label": "a"}]
    counts = {"num_matched": 1.0, "num_predicted": 1.0, "num_true": 1.0}
    right = [answer(place, "detection", true, true, components=counts) for place in range(6)]
    wrong = [replace(one, is_valid=False, parsed=None) for one in right]
    found = {row.metric: row for row in compare(right, wrong, seed=0, resamples=20)}
    assert found["f1_50"].is_headline and found["f1_50"].difference.value == 1.0
    assert found["ap"].difference.value == pytest.approx(1.0) and found["ap"].is_clear


def test_numbers_of_samples_may_differ_and_problems_may_not() -> None:
    several = [replace(one, sample=sample) for one in counted([1.0, 0.0]) for sample in range(4)]
    found = {row.metric: row for row in compare(several, counted([0.0, 0.0]), seed=0, resamples=10)}
    assert found["accuracy"].difference.value == 0.5
    with pytest.raises(ValueError, match="not answers to the same problems"):
        compare(counted([1.0]), counted([1.0, 0.0]), seed=0)
    with pytest.raises(ValueError, match="not answers to the same problems"):
        compare(counted([1.0]), [replace(counted([1.0])[0], task="ocr")], seed=0)


def test_a_metric_that_is_not_defined_has_no_difference() -> None:
    """Nobody knows how far a number is from a true one in words."""
    in_words = [answer(0, "counting", "three", {"count": 3}, reward=1.0)]
    found = {row.metric: row for row in compare(in_words, in_words, seed=0, resamples=10)}
    assert found["mae"].difference.value is None and not found["mae"].is_clear
