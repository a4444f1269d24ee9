"""Reading numbers and answers out of a model's text, on cases and on arbitrary text."""

# ruff: noqa: RUF001 (full-width digits are what is tested)

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmr1_reward_server.parsing import Answer, find_answer, find_boxed, find_numbers, read_number

_SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_TEENS = ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
WORDS = [*_SMALL, *_TEENS, "twenty"]


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>3</answer>", Answer("3", True)),
        ("<answer>3</answer> no, <answer>4</answer>", Answer("4", True)),
        ("<answer>3</answer> and <answer>4", Answer("3", True)),
        ("<answer><answer>3</answer>", Answer("3", True)),
        ("</answer><answer>3", Answer("</answer><answer>3", False)),
        ("<think>2 or 3</think> 3", Answer(" 3", False)),
        ("<think>2 or 3", Answer("", False)),
        ("there are 3", Answer("there are 3", False)),
        ("", Answer("", False)),
    ],
)
def test_answer(response: str, answer: Answer) -> None:
    assert find_answer(response) == answer


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{3} no, \boxed{4}", "4"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", r"\boxed{3}"),
        (r"\boxed {3}", "3"),
        (r"{ \boxed{3}", "3"),
        (r"} \boxed{3} }", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{}", ""),
        (r"\boxed3", None),
        (r"\boxed{3", None),
        ("{3}", None),
        ("", None),
    ],
)
def test_boxed(text: str, boxed: str | None) -> None:
    assert find_boxed(text) == boxed


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3", [3]),
        (".5", [0.5]),
        ("-.5", [-0.5]),
        ("．５", [0.5]),
        ("No.5", [5]),
        ("...5", [5]),
        (".5,6", [5, 6]),
        ("1e3", [1, 3]),
        ("-3", [-3]),
        ("−3", [-3]),
        ("2-3", [2, 3]),
        ("item-3", [3]),
        ("3.", [3]),
        ("3.5", [3.5]),
        ("1,234", [1234]),
        ("1,234,567.5", [1234567.5]),
        ("1_000", [1000]),
        ("1\u00a0234\u202f567", [1234567]),
        ("12,34", [12, 34]),
        ("1,2,3", [1, 2, 3]),
        ("1,234,5", [1, 234, 5]),
        ("1.2.3", [1, 2, 3]),
        ("3...4", [3, 4]),
        ("１２", [12]),
        ("１，２３４", [1234]),
        ("有3个", [3]),
        ("three", [3]),
        ("Twenty cats", [20]),
        ("zero", [0]),
        ("three cats, four dogs", [3, 4]),
        ("twenty-one", []),
        ("twenty one", []),
        ("two hundred", []),
        ("one hundred and five", []),
        ("thirty", []),
        ("one\nhundred", []),
        ("5 digits, one of them blurred", [5]),
        ("none", []),
        ("tone tent", []),
        ("007", [7]),
        ("1" * 15, [float("1" * 15)]),
        ("1" * 16, []),
        ("٣", []),  # other scripts' digits are not read, rather than read by accident
        ("", []),
    ],
)
def test_numbers(text: str, numbers: list[float]) -> None:
    assert find_numbers(text) == numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [(" ３ ", 3), (".5", 0.5), ("-.5", -0.5), ("+3", 3), ("-3", -3), ("1,234", 1234), ("three", 3), ("3.0", 3)],
)
def test_whole_text_as_number(text: str, number: float) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize("text", ["3 4", "3,4", "", "-", ".", "..5", ".٣", "x", "nan", "1e3", "0x3", "9" * 5000])
def test_text_that_is_not_one_number(text: str) -> None:
    assert read_number(text) is None


@given(st.integers(min_value=0, max_value=10**15 - 1))
def test_every_way_of_writing_an_integer(number: int) -> None:
    full_width = str(number).translate({ord("0") + digit: ord("０") + digit for digit in range(10)})
    for text in (str(number), f"{number:,}", f"{number:_}", full_width):
        assert find_numbers(f"about {text} of them.") == [number]
        assert read_number(text) == number


@given(st.decimals(-(10**9), 10**9, places=3, allow_nan=False))
def test_every_way_of_writing_a_decimal(number: Decimal) -> None:
    for text in (f"{number}", f"{number:,}", f"{number}".replace("-", "−")):
        assert find_numbers(f"about {text} of them.") == [float(number)]
        assert read_number(text) == float(number)


@pytest.mark.parametrize(("value", "word"), list(enumerate(WORDS)))
def test_every_word_up_to_twenty(value: int, word: str) -> None:
    for text in (word, word.capitalize(), word.upper()):
        assert find_numbers(f"There are {text}.") == [value]
        assert read_number(f" {text}\n") == value
        assert find_numbers(f"{text} hundred") == find_numbers(f"ninety-{text}") == []


@given(st.lists(st.integers(0, 10**15 - 1)))
def test_numbers_come_in_the_order_of_the_text(numbers: list[int]) -> None:
    assert find_numbers(" and ".join(map(str, numbers))) == numbers


@given(st.text(alphabet="ab {}\\"), st.text(alphabet="ab "))
def test_a_box_at_the_end_is_found(before: str, inside: str) -> None:
    assert find_boxed(before + "}" + r"\boxed{" + inside + "}") == inside


@given(st.text() | st.text(alphabet="0123456789,._- \n<>/answerthinkoe０，"))
def test_any_text_is_read_without_an_exception(text: str) -> None:
    answer = find_answer(text)
    assert answer.text in text
    assert all(number == number and abs(number) < 10**15 for number in find_numbers(text))
    read_number(text)
    boxed = find_boxed(text)
    assert boxed is None or boxed in text


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "\\boxed{}",
        "{",
        "}",
        "\\",
        ".5",
        "1,",
        "1.",
        "-",
        "<answer>",
        "</answer>",
        "<think>",
        "one ",
        "twenty-",
        "9",
        "one and ",
    ],
)
def test_time_grows_no_faster_than_the_text(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    began = time.perf_counter()
    find_numbers(find_answer(text).text)
    find_boxed(text)
    read_number(text)
    assert time.perf_counter() - began < 5  # anything quadratic takes minutes
