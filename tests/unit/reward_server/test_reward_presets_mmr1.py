"""mmr1_ocr and mmr1_grounding against values that the original functions gave."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.api import Outcome
from tests.unit.reward_server.reward_presets import TEXTS, check_any_text, check_both, score


@pytest.mark.parametrize(
    ("response", "solution", "right", "published"),
    [
        ("hello world", "hello world", 1, 1),
        ("hello word", "hello world", 10 / 11, 10 / 11),  # .909; as a ratio of matches it would be .952
        ("  hello \n\t world ", "hello world", 1, 1),
        ("helloworld", "hello world", 10 / 11, 10 / 11),
        ("Hello world", "hello world", 10 / 11, 10 / 11),
        ("你好世界", "你好，世界", 0.8, 0.8),  # noqa: RUF001
        ("abc", "xyz", 0, 0),
        ("abcdef", "abc", 0.5, 0.5),
        ("", "abc", 0, 0),
        ("abc", "", 0, 0),
        ("<answer>abc</answer>", "abc", 0.15, 0.15),  # no tags are read
        ("", "", 1, 0),
        (" \n ", "\t", 1, 0),
    ],
)
def test_ocr(response: str, solution: str, right: float, published: float) -> None:
    check_both("mmr1_ocr", response, solution, right, published)


BOX = "[10, 20, 110, 220]"


@pytest.mark.parametrize(
    ("response", "right", "published"),
    [
        ("[10, 20, 110, 220]", 1, 1),
        (" [10,20,110,220]\n", 1, 1),
        ("[10, 20, 110, 120]", 0.25, 0.25),
        ("[10.0, 2e1, +110, 120.]", 0.25, 0.25),
        ("[60, 20, 160, 220]", 1 / 9, 1 / 9),
        ("['10', \"20\", 110, 220,]", 1, 1),
        ("[-10, 20, 110, 220]", (100 / 120) ** 2, (100 / 120) ** 2),
        ("[200, 300, 300, 400]", -0.2, -0.2),
        ("[110, 20, 210, 220]", -0.2, -0.2),  # they touch
        ("[10, 20, 10, 220]", -0.2, -0.2),  # no area
        ("[110, 20, 10, 220]", -0.6, -0.6),
        ("[10, 220, 110, 20]", -0.6, -0.6),
        ("[10, 20, 110, 220, 0.9]", -1, 1),
        ("[0, 0, 1e999, 1e999]", -1, 0),
        ("[1e999, 0, 1e999, 1]", -1, -0.2),
        ("[10, 20, 110]", -1, -1),
        ("[[10, 20, 110, 220]]", -1, -1),
        ("[10, 20, 110, 220], [1, 2, 3, 4]", -1, -1),
        ("(10, 20, 110, 220)", -1, -1),
        ("The box is [10, 20, 110, 220]", -1, -1),
        ("[10, 20, 110, 220].", -1, -1),
        ("[10 20 110 220]", -1, -1),
        ("[10, 020, 110, 220]", -1, -1),
        ("[10, , 110, 220]", -1, -1),
        ("[10, 20, 110, " + "9" * 400 + "]", -1, -1),
        ("[nan, 20, 110, 220]", -1, -1),
        ("[x, 20, 110, 220]", -1, -1),
        ("[]", -1, -1),
        ("[", -1, -1),
        ("", -1, -1),
    ],
)
def test_grounding(response: str, right: float, published: float) -> None:
    check_both("mmr1_grounding", response, BOX, right, published)
    check_both("mmr1_grounding", response, "(10, 20, 110.0, 220)", right, published)


@pytest.mark.parametrize(
    "solution", ["", "box", "[1, 2, 3]", "[1, 2, 3, 4, 5]", "[3, 2, 1, 4]", "[1, 2, 1, 4]", 3, None]
)
def test_grounding_refuses_solutions_that_are_no_boxes(solution: Any) -> None:
    result = score("mmr1_grounding", BOX, solution)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert result.detail.startswith("solution for task mmr1_grounding: must hold")


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.booleans())
def test_any_text(response: str, bug_compatible: bool) -> None:
    check_any_text("mmr1_ocr", response, "dog", 0, 1, bug_compatible=bug_compatible)
    check_any_text("mmr1_grounding", response, BOX, -1, 1, bug_compatible=bug_compatible)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=4, max_size=4), st.booleans())
def test_any_box(numbers: list[float], bug_compatible: bool) -> None:
    check_any_text("mmr1_grounding", str(numbers), BOX, -1, 1, bug_compatible=bug_compatible)
