"""accuracy: which method a solution asks for, what each finds right, and what is bounded before it is computed."""

# ruff: noqa: RUF001 (full-width letters and the minus sign are what is tested)

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server import mathematics
from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.choices import find_choice
from mmr1_reward_server.mathematics import (
    MAX_BARS,
    MAX_BRACKETS,
    MAX_INTEGRALS,
    MAX_NESTED_FUNCTIONS,
    MAX_NESTED_PRODUCTS,
    MAX_SERIES,
    MAX_SET_OPERATIONS,
)
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.rewards.accuracy import ACCURACY, choose_method, plain
from mmr1_reward_server.scoring import score_item

TASKS = builtin_tasks()
OPTIONS = "ABCDEFGHIJ"


def score(response: str, solution: Any, **params: Any) -> Result:
    item = Item(id="1", task="accuracy", response=response, solution=solution, params=params)
    return score_item(TASKS, item, max_response_chars=200_000)


@pytest.mark.parametrize(
    ("solution", "method"),
    [
        ("B", "choice"),
        ("(b)", "choice"),
        (r"\boxed{C}", "choice"),
        ("K", "exact"),  # no option, and nothing to compute
        ("3", "math"),
        ("1/2", "math"),
        ("x = 3", "math"),
        ("-1,234.5", "math"),
        (r"\frac{1}{2}", "math"),
        (r"$\alpha$", "math"),
        (r"2\text{ cm}", "math"),
        (r"\boxed{12}", "math"),
        ("yes", "exact"),
        ("Route 66", "exact"),
        ("3 cm", "exact"),
        ("it costs $5", "exact"),
        (r"\text{cat}", "exact"),
        (r"\boxed{\text{cat}}", "exact"),
        ("B. a cat", "choice"),
        ("(B) a cat", "choice"),
    ],
)
def test_the_solution_says_how_it_is_judged(solution: str, method: str) -> None:
    assert choose_method(solution, OPTIONS) == method
    result = score(solution, solution)
    assert (result.outcome, result.reward) == (Outcome.OK, 1)
    assert isinstance(result.parsed, dict) and result.parsed["method"] == method
    assert score(solution, f"<answer> {solution} </answer>") == result  # as some datasets hold it


@pytest.mark.parametrize(
    ("response", "solution", "reward"),
    [
        ("3", "3", 1),
        ("<answer>three</answer>", "3", 1),
        ("<answer>３</answer>", "3", 1),
        ("<answer>−3</answer>", "-3", 1),
        ("<answer>-3</answer>", "3", 0),
        ("I see 2 and 1, so 3", "3", 1),
        ("<answer>0.5</answer>", "1/2", 1),
        (r"\boxed{0.5}", r"\frac{1}{2}", 1),
        ("<answer>50%</answer>", r"$\frac{1}{2}$", 1),
        ("<answer>1+x^2</answer>", "x^2+1", 1),
        ("so $x^2 + 1$ it is", "x^2+1", 1),
        ("<answer>x^2-1</answer>", "x^2+1", 0),
        (r"1, 2, \boxed{3} or 4", "3", 1),
        (r"\boxed{3\text{ cm}}", "3", 1),
        (r"\boxed{3 apples}", "3", 1),
        (r"\boxed{2,1}", r"\{1,2\}", 1),
        ("(1, 2)", "(1,2)", 1),
        ("3", "x=3", 1),
        (r"90^\circ", "90°", 1),
        ("1234", "1,234", 1),
        ("1.41421356", r"\sqrt{2}", 1),
        ("1.41", r"\sqrt{2}", 0),
        (r"\boxed{y}", "x", 0),
        (r"\boxed{x}", "x", 1),
        ("<think>4</think>3", "3", 1),
        ("<think>3</think>4", "3", 0),
    ],
)
def test_math(response: str, solution: str, reward: float) -> None:
    result = score(response, solution, method="math")
    assert (result.outcome, result.reward, result.components) == (Outcome.OK, reward, {"accuracy": reward})


@pytest.mark.parametrize("response", ["", "no idea", "<think>3", r"\boxed{3", "<answer></answer>", "?!"])
def test_no_mathematics_in_a_response_is_invalid(response: str) -> None:
    result = score(response, "3", method="math")
    assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, ACCURACY.floor)


@pytest.mark.parametrize("solution", ["yes", "nothing at all", "?", " "])
def test_a_solution_that_math_verify_cannot_read_is_never_right(solution: str) -> None:
    result = score(solution, solution, method="math")
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert "finds no mathematics in it" in result.detail


@pytest.mark.parametrize(
    "response",
    [
        "9**9**9",
        "$9^{9^{9}}$",
        "$10^{10^{10}} - 10^{10^{10}}$",
        "$e^{e^{e^{e^{e}}}}$",
        "$99999999!$",
        "$((9!)!)!$",
        r"$\binom{100000000}{10000000}$",
        r"$\prod_{i=1}^{100000000} i$",
        "$(x+y+z+1)^{30}$",
        "$" + "(" * 900 + "1" + ")" * 900 + "$",
        r"\frac{1}{" * 200 + "1" + "}" * 200,
        "$" + "-" * 900 + "1$",
        "9" * 5_000,
    ],
)
def test_what_no_deadline_can_interrupt_is_not_computed(response: str) -> None:
    score("1", "1", method="math")  # loads math-verify
    began = time.perf_counter()
    result = score(response, "3", method="math")
    assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, ACCURACY.floor)
    assert result.detail.startswith("the answer cannot be compared:")
    refused = score("3", response, method="math")
    assert (refused.outcome, refused.reward) == (Outcome.VERIFIER_ERROR, None)
    assert time.perf_counter() - began < 15  # any one of them would take for ever


SLOW = {  # of so many parts; math-verify takes longer than any deadline for a few more
    "vertical bars": lambda number: "+".join(["|x|"] * (number // 2)) + "|" * (number % 2),
    "opening brackets": lambda number: "\\{" + ",".join(["(1,2)"] * number) + "\\}",
    "unions, intersections and differences of sets": lambda number: "\\cup".join(["\\{1\\}"] * (number + 1)),
    "integrals": lambda number: "\\int e^{x} " * number,
    "sums, products and limits": lambda number: "\\prod_{i=1}^{3}" * number + "i",
    "functions of functions": lambda number: "\\ln" * number + "(2)",
    "products or quotients of others": lambda number: "\\div ".join(["3"] * (number + 4)),
}
LIMITS = (
    MAX_BARS,
    MAX_BRACKETS,
    MAX_SET_OPERATIONS,
    MAX_INTEGRALS,
    MAX_SERIES,
    MAX_NESTED_FUNCTIONS,
    MAX_NESTED_PRODUCTS,
)


@pytest.mark.parametrize(("name", "limit"), [*zip(SLOW, LIMITS, strict=True)])
def test_what_takes_long_beyond_its_length_is_bounded(name: str, limit: int) -> None:
    score("1", "1", method="math")
    for number in (limit, limit + 1, 3 * limit):
        began = time.process_time()
        result = score(f"\\boxed{{{SLOW[name](number)}}}", "3", method="math", max_math_chars=1000)
        assert time.process_time() - began < 4  # a second, on a machine that does nothing else
        refused = result.detail.startswith("the answer cannot be compared: ")
        assert refused == (number > limit)
        if refused:
            assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, ACCURACY.floor)
            assert name in result.detail and str(limit) in result.detail


@pytest.mark.parametrize("tower", ["x^x^x^x^x^1", "x_x_x_x_x_x", r"2^-\pi^ a^{b}^c^d"])
def test_towers_without_braces_are_not_read(tower: str) -> None:
    assert "powers of powers" in score(tower, "3", method="math").detail
    assert "powers of powers" in score("x" + "_a" * 240, "3", method="math").detail


@pytest.mark.parametrize(
    "answer",
    [
        "+".join(f"{number}x^{{{number}}}" for number in range(2, 50)),
        ",".join(rf"\frac{{{number}}}{{{number + 1}}}" for number in range(1, 20)),
        r"\cup".join(f"({2 * number},{2 * number + 1})" for number in range(12)),
        "+".join(rf"\sin(\frac{{x}}{{{number}}})" for number in range(2, 20)),
        r"\begin{pmatrix}" + r"\\".join("1 & 2 & 3 & 4" for _ in range(8)) + r"\end{pmatrix}",
        r"1+\frac{1}{" * 6 + "2" + "}" * 6,
        "+".join(f"x_{{{number}}}" for number in range(40)),
    ],
)
def test_long_answers_such_as_people_give_are_read(answer: str) -> None:
    assert score(f"\\boxed{{{answer}}}", answer, method="math").reward == 1


def test_large_numbers_within_the_limits_are_compared() -> None:
    assert score("$9^{1000}$", "3^{2000}", method="math").reward == 1
    assert score("$(x+1)^2$", "x^2+2x+1", method="math").reward == 1
    assert score("9" * 60, "9" * 60, method="math", max_math_chars=60).reward == 1
    assert score("9" * 61, "9" * 60, method="math", max_math_chars=60).outcome is Outcome.INVALID_OUTPUT


def test_math_works_off_the_main_thread() -> None:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(score("0.25", "1/4", method="math")))
    thread.start()
    thread.join()
    assert [result.reward for result in results] == [1]


@pytest.fixture
def without_math_verify(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    mathematics._load.cache_clear()
    yield
    mathematics._load.cache_clear()


@pytest.mark.usefixtures("without_math_verify")
def test_without_the_extra_only_math_is_missing() -> None:
    result = score("3", "3")
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert result.detail == "math-verify is not installed: pip install 'mmr1-reward-server[math]'"
    assert score("B", "B").reward == score("a cat", "A cat").reward == 1


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" b\n", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("[B]", "B"),
        ("**B**", "B"),
        ("$B$", "B"),
        (r"\boxed{B}", "B"),
        (r"Final answer: $\boxed{\text{B}}$", "B"),
        (r"\boxed{C}, not B", "C"),
        ("B. a cat", "B"),
        ("(B) a cat", "B"),
        ("**B**: a cat", "B"),
        ("B. Vitamin C", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("**Answer**: (B)", "B"),
        ("the answer is b", "B"),
        ("The correct option is (B).", "B"),
        ("Option A is wrong. The answer is B. Option C is worse.", "B"),
        ("The answer is A because it barks", "A"),
        ("Answer: A. No, answer: B", "B"),
        ("It is (B), I think", "B"),
        ("I think it is B", "B"),
        ("A", "A"),
        ("A dog", None),
        ("The answer is a dog", None),
        ("Answer: I cannot tell", None),
        ("B or C", None),
        ("A or C", None),
        ("A bird and C", "C"),
        ("(B) or (C)", None),
        ("A) one B) two C) three", None),
        ("A. a cat\nB. a dog", None),
        ("Vitamin", None),
        ("K", None),
        ("B2", None),
        ("", None),
    ],
)
def test_choice(text: str, letter: str | None) -> None:
    assert find_choice(text, OPTIONS).letter == letter
    result = score(text, "B", method="choice")
    if letter is None:
        assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, ACCURACY.floor)
        assert result.detail.startswith("the answer names")
    else:
        assert (result.outcome, result.reward) == (Outcome.OK, 1 if letter == "B" else 0)
        assert result.parsed == {"answer": letter, "method": "choice"}


def test_only_the_options_are_seen() -> None:
    assert score("A or C", "C", method="choice").outcome is Outcome.INVALID_OUTPUT
    assert score("A or C", "A", method="choice", options="AB").reward == 1
    assert score("E", "E", options="ABCD").reward == 1  # by exact, as it is no option
    assert score("C", "C", options="AB", method="choice").outcome is Outcome.VERIFIER_ERROR
    assert score("A", "A", options="ab").outcome is Outcome.VERIFIER_ERROR


@pytest.mark.parametrize("solution", ["yes", "I see a cat", "A or B", "the plan B", ""])
def test_a_solution_that_is_no_choice_is_refused(solution: str) -> None:
    assert score("A", solution, method="choice").outcome is Outcome.VERIFIER_ERROR


@pytest.mark.parametrize("solution", ["A", "(A)", "A. a cat", r"\boxed{A}", "<answer>A</answer>", "**A**"])
def test_a_choice_may_be_dressed_in_the_dataset_too(solution: str) -> None:
    assert score("A", solution, method="choice").reward == 1


@pytest.mark.parametrize(
    ("response", "solution", "reward"),
    [
        ("<answer>Cat.</answer>", "cat", 1),
        ("a  big\ncat", "A big cat", 1),
        (r"\boxed{cat}", "cat", 1),
        ("cat", r"\text{cat}", 1),
        ("ｃａｔ", "cat", 1),
        ("“cat”", "cat", 1),
        ("猫。", "猫", 1),
        ("a cat", "cat", 0),
        ("5", "-5", 0),
        ("5", "5%", 0),
        ("0.50", "0.5", 0),
    ],
)
def test_exact(response: str, solution: str, reward: float) -> None:
    result = score(response, solution, method="exact")
    assert (result.outcome, result.reward) == (Outcome.OK, reward)


def test_nothing_is_never_exactly_right() -> None:
    assert score("...", "cat").outcome is Outcome.INVALID_OUTPUT
    assert score("", "cat").outcome is Outcome.INVALID_OUTPUT
    assert score("", "...").outcome is Outcome.VERIFIER_ERROR


@pytest.mark.parametrize("solution", [None, True, ["A"], "", "a" * 100_001])
def test_solutions_that_are_no_text_are_refused(solution: Any) -> None:
    result = score("3", solution)
    assert result.outcome is Outcome.VERIFIER_ERROR
    assert result.detail.startswith("solution for task accuracy:")


@settings(max_examples=50, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 1000))
def test_every_fraction_equals_itself_only(numerator: int, denominator: int) -> None:
    solution = f"{numerator}/{denominator}"
    shortened = Fraction(numerator, denominator)
    assert score(f"<answer>{shortened}</answer>", solution).reward == 1
    assert score(rf"\boxed{{\frac{{{numerator}}}{{{denominator}}}}}", solution).reward == 1
    assert score(f"<answer>{shortened + 1}</answer>", solution).reward == 0


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(OPTIONS), st.sampled_from(OPTIONS), st.sampled_from(["{}", "({})", "Answer: {}.", r"\boxed{{{}}}"])
)
def test_choices_are_right_exactly_when_equal(chosen: str, true: str, form: str) -> None:
    assert score(form.format(chosen), true).reward == (1 if chosen == true else 0)


@settings(max_examples=100, deadline=None)
@given(st.text() | st.text(alphabet="ABIi ().:*$\\{}answerboxedtext"), st.sampled_from(["choice", "exact"]))
def test_any_text_is_judged(text: str, method: str) -> None:
    result = score(text, "B", method=method)
    assert result.reward in (0, 1)
    result.model_dump_json()
    assert plain(plain(text)) is not None
    assert score(text, text or "B", method=method).reward in (None, 0, 1)


# Not other texts each time: what sympy makes of some takes long, and the server's deadline is not here.
@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(max_size=30) | st.text(alphabet="0123456789+-*/^=(){}\\!$x. ", max_size=20))
def test_any_text_is_judged_by_math(text: str) -> None:
    assert score(text, "3", method="math").reward in (0, 1)
    assert score("3", text or "3", method="math").reward in (None, 0, 1)


@pytest.mark.parametrize("piece", ["answer ", "A. ", "\\boxed{", "(A", "**", "option is ", "\\text{", "$", "Answer: "])
def test_time_grows_no_faster_than_the_text(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    began = time.perf_counter()
    for method in ("choice", "exact", "math"):
        score(text, "B", method=method)
    assert time.perf_counter() - began < 5
