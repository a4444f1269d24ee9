"""repetition: n-grams counted one by one, bounds, and what it costs."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.rewards.repetition import REPETITION, repeated_share
from mmr1_reward_server.scoring import score_item

TASKS = builtin_tasks()


def score(response: str, **params: Any) -> Result:
    item = Item(id="1", task="repetition", response=response, solution=None, params=params)
    return score_item(TASKS, item, max_response_chars=200_000)


@pytest.mark.parametrize(
    ("response", "params", "reward"),
    [
        ("a b c d e f", {}, 0),
        ("a a a a a", {"n": 1}, -4 / 5),
        ("a a a a a", {"n": 3}, -2 / 3),
        ("a b a b a b", {"n": 2}, -3 / 5),
        ("A b a B", {"n": 2}, -1 / 3),
        ("a b a b a b", {"n": 2, "max_penalty": 0.5}, -3 / 10),
        ("a b", {"n": 3}, 0),
        ("a b c", {"n": 3}, 0),
        ("", {}, 0),
        ("红红红红红", {"n": 3}, -2 / 3),
        ("红红红红红", {"n": 3, "tokens": "words"}, 0),
        ("ababab", {"n": 2, "tokens": "characters"}, -3 / 5),
        # VLM-R1: six words in a row, below six nothing
        ("one two three four five six " * 2, {"n": 6}, -1 / 7),
        ("one two three four five", {"n": 6}, 0),
    ],
)
def test_penalty(response: str, params: dict[str, Any], reward: float) -> None:
    result = score(response, **params)
    assert result.outcome is Outcome.OK
    assert result.reward == pytest.approx(reward)
    assert str(result.reward) != "-0.0"
    assert result.reward == pytest.approx(-params.get("max_penalty", 1) * result.components["repeated_share"])


@pytest.mark.parametrize("params", [{"n": 0}, {"n": 41}, {"max_penalty": 0}, {"max_penalty": 2}, {"tokens": "bytes"}])
def test_params_out_of_bounds_are_refused(params: dict[str, Any]) -> None:
    assert score("a", **params).outcome is Outcome.VERIFIER_ERROR


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc")), st.integers(1, 5))
def test_share_is_what_counting_gives(tokens: list[str], n: int) -> None:
    seen: set[str] = set()
    total = repeated = 0
    for start in range(len(tokens) - n + 1):
        gram = "".join(tokens[start : start + n])
        total += 1
        repeated += gram in seen
        seen.add(gram)
    assert repeated_share(tokens, n) == pytest.approx(repeated / max(total, 1))


@settings(max_examples=100, deadline=None)
@given(st.text(), st.integers(1, 40), st.floats(0.01, 1))
def test_bounds(response: str, n: int, max_penalty: float) -> None:
    result = score(response, n=n, max_penalty=max_penalty)
    assert result.reward is not None and REPETITION.floor <= -max_penalty < result.reward <= 0


def test_longest_response_and_n_gram() -> None:
    began = time.perf_counter()
    assert score("ab " * 60_000, n=40).reward == pytest.approx(-1, abs=1e-4)
    assert score("".join(chr(0x4E00 + number % 20_000) for number in range(100_000)), n=40).reward is not None
    assert time.perf_counter() - began < 5
