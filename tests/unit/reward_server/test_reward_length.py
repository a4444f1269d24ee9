"""length: each shape against its formula, at its corners and everywhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.rewards.length import LENGTH, LengthParams, band, cosine, overlong
from mmr1_reward_server.scoring import score_item

TASKS = builtin_tasks()
LENGTHS = st.integers(0, 10**7)
RANGES = st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)).map(sorted).filter(lambda pair: pair[1] > 0)


def score(response: str, **params: Any) -> Result:
    item = Item(id="1", task="length", response=response, solution=None, params=params)
    return score_item(TASKS, item, max_response_chars=10_000)


@pytest.mark.parametrize(
    ("num_words", "params", "reward"),
    [
        (0, {"max": 10}, 1),
        (10, {"max": 10}, 1),
        (15, {"max": 10}, 0.5),
        (20, {"max": 10}, 0),
        (90, {"max": 10}, 0),
        (3, {"min": 4, "max": 10}, 0.75),
        (0, {"min": 4, "max": 10}, 0),
        (4, {"min": 4, "max": 4}, 1),
        # VLM-R1's cosine, which from 1024 on swings back to 1
        (0, {"shape": "cosine", "max": 1024}, 1),
        (512, {"shape": "cosine", "max": 1024}, 0.75),
        (1024, {"shape": "cosine", "max": 1024}, 0.5),
        (2048, {"shape": "cosine", "max": 1024}, 0.5),
        (0, {"shape": "cosine", "max": 10, "at_zero": -1, "at_max": 0}, -1),
        (10, {"shape": "cosine", "max": 10, "at_zero": -1, "at_max": 0}, 0),
        # DAPO with L_max 20 and L_cache 4
        (16, {"shape": "overlong", "min": 16, "max": 20}, 0),
        (17, {"shape": "overlong", "min": 16, "max": 20}, -0.25),
        (20, {"shape": "overlong", "min": 16, "max": 20}, -1),
        (21, {"shape": "overlong", "min": 16, "max": 20}, -1),
        (16, {"shape": "overlong", "min": 16, "max": 16}, 0),
        (17, {"shape": "overlong", "min": 16, "max": 16}, -1),
    ],
)
def test_shapes(num_words: int, params: dict[str, Any], reward: float) -> None:
    result = score("w " * num_words, **params)
    assert result.outcome is Outcome.OK
    assert result.reward == pytest.approx(reward)
    assert result.components == {"length": num_words}


@pytest.mark.parametrize(
    ("response", "unit", "length"),
    [("two words", "words", 2), ("two words", "characters", 9), ("两个词 ok", "words", 4), ("", "words", 0)],
)
def test_units(response: str, unit: str, length: int) -> None:
    assert score(response, max=10, unit=unit).parsed == {"length": length}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "max: Field required"),
        ({"max": 0}, "max: Input should be greater"),
        ({"min": 5, "max": 4}, "min (5) is above max (4)"),
        ({"max": 5, "at_max": 0.0}, "shape band has no at_max"),
        ({"shape": "cosine", "max": 5, "min": 1}, "shape cosine has no min"),
        ({"shape": "overlong", "max": 5, "at_zero": 0.5}, "shape overlong has no at_zero"),
        ({"shape": "cosine", "max": 5, "at_zero": float("nan")}, "at_zero: Input should be"),
    ],
)
def test_params_that_contradict_each_other_are_refused(params: dict[str, Any], said: str) -> None:
    result = score("a", **params)
    assert result.outcome is Outcome.VERIFIER_ERROR
    assert result.detail.startswith(f"params of task length: {said}")


@settings(max_examples=100, deadline=None)
@given(LENGTHS, RANGES)
def test_band_is_one_inside_and_bounded(length: int, ends: list[int]) -> None:
    low, high = ends
    reward = band(length, low, high)
    assert 0 <= reward <= 1
    assert (reward == 1) == (low <= length <= high)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, LENGTHS, st.integers(1, 10**6), st.floats(-1, 1), st.floats(-1, 1))
def test_cosine_goes_one_way_and_stays(one: int, other: int, end: int, at_zero: float, at_end: float) -> None:
    shorter, longer = (cosine(length, end, at_zero, at_end) for length in sorted((one, other)))
    low, high = sorted((at_zero, at_end))
    assert all(low - 1e-9 <= reward <= high + 1e-9 for reward in (shorter, longer))
    assert (longer - shorter) * (at_end - at_zero) >= -1e-9
    assert max(one, other) < end or longer == pytest.approx(at_end)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, RANGES)
def test_overlong_is_equation_13(length: int, ends: list[int]) -> None:
    l_max, l_cache = ends[1], ends[1] - ends[0]
    if length <= l_max - l_cache:
        expected = 0.0
    elif length <= l_max:
        expected = ((l_max - l_cache) - length) / l_cache
    else:
        expected = -1.0
    assert overlong(length, ends[0], ends[1]) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(st.text(), st.sampled_from(["band", "cosine", "overlong"]), st.sampled_from(["words", "characters"]))
def test_any_text_has_a_length(response: str, shape: str, unit: str) -> None:
    result = score(response, shape=shape, unit=unit, max=3)
    floor = LENGTH.floor_with(LengthParams(shape=shape, unit=unit, max=3))
    assert result.reward is not None and floor <= result.reward <= 1


def test_overlong_response_gets_what_overlong_gives_at_worst() -> None:
    result = score("a" * 10_001, shape="overlong", max=5)
    assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, -1)
