"""format with a pattern of the request's own: what it matches, what is refused, and that it stays linear."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.patterns import MAX_PATTERN_CHARS, BadPattern, Pattern, _compile
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import score_item

TASKS = builtin_tasks()
THINK_ANSWER = r"(?s)<think>.*?</think>\s*<answer>.*?</answer>"


def score(response: str, **params: Any) -> Result:
    item = Item(id="1", task="format", response=response, solution=None, params=params)
    return score_item(TASKS, item, max_response_chars=200_000)


@pytest.mark.parametrize(
    ("pattern", "response", "reward"),
    [
        (THINK_ANSWER, "<think>a\nb</think>\n<answer>3</answer>", 1),
        (THINK_ANSWER, "<think>a</think><answer>3</answer> ", 0),
        (THINK_ANSWER, " <think>a</think><answer>3</answer>", 0),
        (r"<answer>\d+</answer>", "<answer>12</answer>", 1),
        (r"<answer>\d+</answer>", "<answer>12</answer><answer>12</answer>", 0),
        (r"a|ab", "ab", 1),  # the whole response, not its first alternative
        (r"a.b", "a\nb", 0),
        (r"\p{Han}+", "漢字", 1),
        (r"\p{Han}+", "漢字a", 0),
        (r"", "", 1),
        (r".", "é", 1),  # a character, not a byte
        (r"(?i)ANSWER: [a-d]", "Answer: B", 1),
    ],
)
def test_pattern(pattern: str, response: str, reward: float) -> None:
    result = score(response, style="pattern", pattern=pattern)
    assert (result.outcome, result.reward) == (Outcome.OK, reward)
    assert result.parsed == {"well_formed": reward == 1}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"style": "pattern", "pattern": "ab(c"}, "pattern: missing ) at character 0: ab(c"),
        ({"style": "pattern", "pattern": "ab**"}, "pattern: bad repetition operator at character 2: **"),
        ({"style": "pattern", "pattern": "x(?=a)"}, "pattern: invalid perl operator at character 1: (?="),
        ({"style": "pattern", "pattern": r"(a)\1"}, r"pattern: invalid escape sequence at character 3: \1"),
        ({"style": "pattern", "pattern": r"\pL{500}"}, "pattern: pattern too large"),
        ({"style": "pattern", "pattern": "(a{1000}){1000}"}, "pattern: invalid repetition size at character 2: {1000}"),
        ({"style": "pattern", "pattern": "a\ud800"}, "pattern: Input should be a valid string"),
        ({"style": "pattern", "pattern": "a" * (MAX_PATTERN_CHARS + 1)}, "pattern: String should have at most 1000"),
        ({"style": "pattern"}, "style 'pattern' and a pattern go together"),
        ({"pattern": "a"}, "style 'pattern' and a pattern go together"),
        ({"style": "^(a+)+$"}, "style: Input should be"),
        ({"style": None}, "style: Input should be"),
    ],
)
def test_what_is_refused(params: dict[str, Any], said: str) -> None:
    result = score("<answer>3</answer>", **params)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert result.detail.startswith(f"params of task format: {said}")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("a\ud800", "half a surrogate pair at character 1"), ("a" * (MAX_PATTERN_CHARS + 1), "has 1001 characters")],
)
def test_what_is_refused_from_python(pattern: str, said: str) -> None:
    with pytest.raises(BadPattern, match=said):
        Pattern(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)+b", "(a*)*b", "(?:a?){500}a{500}b", ".*.*.*.*b"])
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    began = time.perf_counter()
    assert score("a" * 100_000, style="pattern", pattern=pattern).reward == 0
    assert time.perf_counter() - began < 5  # the first would take re longer than there is time


def test_as_many_patterns_as_there_are_are_not_all_kept() -> None:
    for number in range(200):
        assert Pattern(f"a{number}").matches(f"a{number}")
    kept = _compile.cache_info()
    assert kept.maxsize is not None and kept.currsize <= kept.maxsize < 200


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab01 \n"), st.sampled_from([r"[ab]*", r"a.*", r"(?s)a.*b", r"[ab ]+\d", r"(a|b\n)*"]))
def test_agrees_with_re(response: str, pattern: str) -> None:
    assert (score(response, style="pattern", pattern=pattern).reward == 1) == bool(re.fullmatch(pattern, response))


@settings(max_examples=100, deadline=None)
@given(st.text() | st.text(alphabet="ab()[]{}*+?|\\^$.,0123456789"), st.text())
def test_any_text_as_pattern_and_response(pattern: str, response: str) -> None:
    result = score(response, style="pattern", pattern=pattern)
    assert (result.reward is None) == (result.outcome is Outcome.VERIFIER_ERROR)
    try:
        Pattern(pattern)
    except BadPattern as error:
        assert str(error) and result.reward is None
    else:
        assert result.reward in (0, 1)


def test_half_a_surrogate_pair_in_a_response_is_a_character() -> None:
    assert score("a\ud800", style="pattern", pattern="a.").reward == 1
