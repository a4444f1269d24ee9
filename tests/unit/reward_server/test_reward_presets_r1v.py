"""r1v_accuracy against values that the original function gave with math-verify 0.9.0."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server import mathematics
from mmr1_reward_server.api import Outcome
from tests.unit.reward_server.reward_presets import TEXTS, check_any_text, check_both, score


@pytest.mark.parametrize(
    ("response", "solution", "right", "published"),
    [
        ("<think>2+1</think><answer>3</answer>", "<answer> 3 </answer>", 1, 1),
        ("<think>2+1</think><answer>4</answer>", "<answer> 3 </answer>", 0, 0),
        ("3", "<answer> 3 </answer>", 1, 1),
        ("<answer>3</answer>", "3", 1, 1),
        ("<answer>\n3\n</answer>", "<answer> 3 </answer>", 1, 1),
        ("<answer>B</answer>", "<answer> B </answer>", 1, 1),
        ("B", "<answer> B </answer>", 1, 1),
        ("<answer>C</answer>", "<answer> B </answer>", 0, 0),
        ("<answer>yes</answer>", "<answer>yes</answer>", 1, 1),
        ("<answer>Yes</answer>", "<answer>yes</answer>", 0, 0),
        ("yes", "yes", 1, 1),
        ("<answer>145°</answer>", "<answer>145°</answer>", 1, 1),
        # The reasoning wins over the answer.
        ("<think>the answer is 3</think><answer>4</answer>", "<answer> 3 </answer>", 0, 1),
        ("The final answer is $3$. I hope it is correct. <answer>4</answer>", "<answer> 3 </answer>", 0, 1),
        ("<answer>4</answer> \\boxed{3}", "<answer> 3 </answer>", 0, 1),
        ("<answer>4</answer> 3", "<answer> 3 </answer>", 0, 1),
        # Tags hide decimals and fractions.
        ("<answer>3.0</answer>", "<answer> 3 </answer>", 1, 0),
        ("<answer>1/2</answer>", "<answer>0.5</answer>", 1, 0),
        ("<answer>$\\frac{1}{2}$</answer>", "<answer>0.5</answer>", 1, 0),
        ("<answer>1,234</answer>", "<answer>1234</answer>", 1, 0),
        # Several lines, several answers.
        ("<answer>\nB\n</answer>", "<answer> B </answer>", 1, 0),
        ("<answer>3</answer><answer>4</answer>", "<answer>4</answer>", 1, 0),
        ("<answer>3</answer><answer>4</answer>", "<answer>3</answer>", 0, 1),
        # Which of the two is the truth.
        ("<answer>$x>3$</answer>", "<answer>$(3,\\infty)$</answer>", 0, 1),
        ("<answer>$(3,\\infty)$</answer>", "<answer>$x>3$</answer>", 1, 0),
        ("<answer>3</answer>", "<answer>x=3</answer>", 1, 0),
        ("<answer></answer>", "<answer>3</answer>", 0, 0),
        ("<think>3</think>", "<answer>3</answer>", 0, 0),
        ("", "<answer>3</answer>", 0, 0),
    ],
)
def test_accuracy(response: str, solution: str, right: float, published: float) -> None:
    check_both("r1v_accuracy", response, solution, right, published)


def test_what_math_verify_cannot_end_is_compared_as_text() -> None:
    nested = "{" * 50 + "1" + "}" * 50
    for response, expected in ((f"<answer>{nested}</answer>", 1), ("<answer>9^(9^9)</answer>", 0), ("1 " * 3000, 0)):
        check_both("r1v_accuracy", response, f"<answer>{nested}</answer>", expected, expected)


def test_without_math_verify_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mathematics._load.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    for bug_compatible in (False, True):
        result = score("r1v_accuracy", "<answer>3</answer>", "<answer>4</answer>", bug_compatible=bug_compatible)
        assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
        assert "pip install 'mmr1-reward-server[math]'" in result.detail


@pytest.mark.parametrize("solution", [None, True, "", ["3"]])
def test_solutions_of_another_form_are_refused(solution: Any) -> None:
    result = score("r1v_accuracy", "3", solution)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.booleans())
def test_any_text(response: str, bug_compatible: bool) -> None:
    check_any_text("r1v_accuracy", response, "<answer>0.5</answer>", 0, 1, bug_compatible=bug_compatible)
    assert score(
        "r1v_accuracy", f"<answer>{response}</answer>", "dog", bug_compatible=bug_compatible
    ).outcome.has_reward


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("<think>step\n----------\nstep 2</think> The answer is $4$", 1),
        ("<think>" + 180 * "I look at the picture. " + "</think> The answer is $4$", 1),
        ("<think>" + 4000 * "I look at the picture. " + "</think> The answer is $4$", 1),
        ("".join(f"|{letter}| and ({letter}), " for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ") + "so $4$", 1),
        ("$))))))))))))$ $" + 20 * "(" + "4" + 20 * ")" + "$", 0),
        ("$" + ",".join(f"x_{number}" for number in range(100)) + "$", 0),
    ],
)
def test_what_stands_around_the_mathematics_changes_nothing(response: str, right: float) -> None:
    for bug_compatible in (False, True):
        result = score("r1v_accuracy", response, "$4$", bug_compatible=bug_compatible)
        assert (result.outcome, result.reward) == (Outcome.OK, right)


_PROSE = st.lists(
    st.sampled_from(
        [
            *(
                "The answer is",
                "final answer:",
                "so",
                "$4$",
                "$x^2$",
                "\\boxed{3}",
                "1/2",
                "2^3",
                "(1+2)*3",
                "5%",
                "-7",
            ),
            *("1,234.5", "0.5", "\n", "\\[y\\]", "\\(z\\)", "and", "or", ",", "\\frac{1}{2}", "$", "{", "|", "7/0"),
            *("-7", "=", "12 / (3"),
        ]
    ),
    max_size=12,
).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(_PROSE)
def test_whole_texts_are_read_as_math_verify_reads_them(text: str) -> None:
    import math_verify

    read = mathematics.read_whole(text)
    expected = math_verify.parse(text, parsing_timeout=None)
    assert ([] if read is None else [str(value) for value in read.values]) == [str(value) for value in expected]
