"""ocr: its measures on cases and against rapidfuzz and jiwer, its normalisations, and what long texts cost."""

# ruff: noqa: RUF001 (full-width letters are what is tested)

from __future__ import annotations

import sys
import time
import unicodedata
from typing import Any

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.rewards.ocr import OCR
from mmr1_reward_server.scoring import score_item
from mmr1_reward_server.text import (
    _WITHOUT_MARKS,
    _is_mark,
    edit_similarity,
    error_rate,
    normalise,
    strip_fence,
    token_f1,
    tokenise,
)

TASKS = builtin_tasks()
PLAIN = st.text(alphabet="ab c").map(normalise)
ANY = st.text() | st.text(alphabet="aA é\u0301\u0323\u3000、漢字，ｂ.\n`<>/answer")
ENDLESS_MARKS = "a" + "\u0301\u0323" * 24_000


def score(response: str, solution: Any, **params: Any) -> Result:
    item = Item(id="1", task="ocr", response=response, solution=solution, params=params)
    return score_item(TASKS, item, max_response_chars=100_000)


def rewards(response: str, solution: Any, **params: Any) -> list[float]:
    """All four components, after checking that `score` picks the one it names."""
    result = score(response, solution, **params)
    assert (result.outcome, list(result.components)) == (Outcome.OK, ["edit", "cer", "wer", "f1"])
    for name, value in result.components.items():
        assert score(response, solution, score=name, **params).reward == value
    return list(result.components.values())


@pytest.mark.parametrize(
    ("response", "solution", "expected"),
    [
        ("hello world", "hello world", [1, 1, 1, 1]),
        ("<answer>hello word</answer>", "hello world", [1 - 1 / 11, 1 - 1 / 11, 0.5, 0.5]),
        ("hello  \n world ", "hello world", [1, 1, 1, 1]),
        ("", "", [1, 1, 1, 1]),
        ("<answer></answer>", "", [1, 1, 1, 1]),
        ("", "hello", [0, 0, 0, 0]),
        ("hello", "", [0, 0, 0, 0]),
        ("<answer> </answer>", "hello", [0, 0, 0, 0]),
        ("xyz", "abc", [0, 0, 0, 0]),
        ("abcabcabc", "abc", [1 / 3, 0, 0, 0]),  # six insertions into three characters
        ("world hello", "hello world", [1 - 8 / 11, 1 - 8 / 11, 0, 1]),
        ("a b b", "a b", [0.6, 1 / 3, 0.5, 0.8]),
        ("<think>is it b?</think>a", "a", [1, 1, 1, 1]),
        ("<think>b</think><answer>a</answer>", "a", [1, 1, 1, 1]),
        ("```\nhello world\n```", "hello world", [1, 1, 1, 1]),
        ("hello world", "```text\nhello world\n```", [1, 1, 1, 1]),
        ("cafe\u0301", "café", [1, 1, 1, 1]),
        ("我有三个苹果", "我有二个苹果", [5 / 6] * 4),
        ("我有3 apples", "我有3 pears", [1 - 4 / 10, 1 - 4 / 9, 0.75, 0.75]),
        ("こんにちは", "こんばんは", [0.6] * 4),
        ("안녕 세상", "안녕 세계", [0.8, 0.8, 0.5, 0.5]),
    ],
)
def test_measures(response: str, solution: str, expected: list[float]) -> None:
    assert rewards(response, solution) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("response", "solution", "params", "edit"),
    [
        ("ab", "a b", {}, 2 / 3),
        ("ab", "a b", {"whitespace": "remove"}, 1),
        ("a\nb", "a b", {"whitespace": "keep"}, 2 / 3),
        ("<answer>\na</answer>", "a", {"whitespace": "keep"}, 0.5),
        ("Ａ", "A", {}, 0),
        ("Ａ", "A", {"unicode": "NFKC"}, 1),
        ("a\u3000b", "a b", {"unicode": "none"}, 1),
        ("e\u0301", "é", {"unicode": "none"}, 0),
        ("HELLO", "hello", {}, 0),
        ("STRASSE", "straße", {"case": "ignore"}, 1),
        ("Hello, world!", "Hello world", {"punctuation": "ignore"}, 1),
        ("你好，世界。", "你好世界", {"punctuation": "ignore"}, 1),
        ("e!\u0301", "é", {"punctuation": "ignore"}, 1),
        ("...", "", {"punctuation": "ignore"}, 1),
        ("```\na\n```", "a", {"fence": "keep"}, 1 - 8 / 9),
    ],
)
def test_normalisation(response: str, solution: str, params: dict[str, Any], edit: float) -> None:
    assert score(response, solution, **params).reward == pytest.approx(edit)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("```\na\nb\n```", "a\nb\n"),
        ("```python\na\n```", "a\n"),
        ("```a b```", "a b"),
        ("```two words\na```", "two words\na"),
        ("``````", ""),
        ("`````", "`````"),
        ("```a``` and ```b```", "```a``` and ```b```"),
        ("see ```a```", "see ```a```"),
        ("```a", "```a"),
        ("", ""),
    ],
)
def test_fence(text: str, inside: str) -> None:
    assert strip_fence(text) == inside


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("a bc\nd", "auto", ["a", "bc", "d"]),
        ("我有3 apples。", "auto", ["我", "有", "3", "apples", "。"]),
        ("東京タワーtower", "auto", ["東", "京", "タ", "ワ", "ー", "tower"]),
        ("한국어 말", "auto", ["한국어", "말"]),
        ("ไทย", "auto", ["ไ", "ท", "ย"]),
        ("𠀀𠀁a", "auto", ["𠀀", "𠀁", "a"]),
        ("我有3 apples。", "words", ["我有3", "apples。"]),
        ("我 ab", "characters", ["我", "a", "b"]),
        (" ", "auto", []),
    ],
)
def test_tokens(text: str, tokens: Any, expected: list[str]) -> None:
    assert tokenise(text, tokens) == expected


def test_tokens_change_wer_and_f1_only() -> None:
    by_word, by_character = (rewards("我有三个", "我有二个", tokens=tokens) for tokens in ("words", "characters"))
    assert by_word[:2] == by_character[:2] == [0.75, 0.75]
    assert (by_word[2:], by_character[2:]) == ([0, 0], [0.75, 0.75])


def test_of_several_solutions_the_best_counts() -> None:
    result = score("<answer>color</answer>", ["colour", "color", "hue"])
    assert result.reward == 1
    assert result.detail == "edit 1 of 5 characters read, nearest to solution 2 of 3"
    assert score("b a", ["a b", "b c"], score="f1").reward == 1
    assert score("b a", ["a b", "b c"], score="wer").reward == 0.5


@pytest.mark.parametrize("response", ["<think>never closed", "<think>closed</think>", "<think>closed</think> \n"])
def test_reasoning_without_an_answer_is_invalid(response: str) -> None:
    for solution in ("closed", ""):
        result = score(response, solution)
        assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, OCR.floor)


@pytest.mark.parametrize("solution", [None, True, [], ["a", None], ["a"] * 65, {"text": "a"}, "a" * 100_001])
def test_solutions_that_are_no_text_are_refused(solution: Any) -> None:
    result = score("a", solution)
    assert result.outcome is Outcome.VERIFIER_ERROR
    assert result.detail.startswith("solution for task ocr:")


@settings(max_examples=100, deadline=None)
@given(PLAIN, PLAIN.filter(bool))
def test_agrees_with_rapidfuzz_and_jiwer(read: str, true: str) -> None:
    edit, cer, wer, _ = rewards(f"<answer>{read}</answer>", true)
    assert edit == pytest.approx(1 - Levenshtein.distance(read, true) / max(len(read), len(true)))
    assert cer == pytest.approx(max(0, 1 - jiwer.cer(true, read)))
    assert wer == pytest.approx(max(0, 1 - jiwer.wer(true, read)))


@settings(max_examples=100, deadline=None)
@given(ANY, ANY, st.sampled_from(["auto", "words", "characters"]))
def test_edit_and_f1_are_symmetric_and_everything_is_bounded(one: str, other: str, tokens: Any) -> None:
    ones, others = tokenise(one, tokens), tokenise(other, tokens)
    assert 0 <= edit_similarity(one, other) == edit_similarity(other, one) <= 1
    assert 0 <= token_f1(ones, others) == token_f1(others, ones) <= 1
    assert (edit_similarity(one, other) == 1) == (one == other)
    assert (error_rate(one, other) == 0) == (one == other)
    assert error_rate(one, other) <= max(len(one), len(other), 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"])), st.randoms())
def test_f1_does_not_see_the_order(tokens: list[str], random: Any) -> None:
    assert token_f1(random.sample(tokens, len(tokens)), tokens) == 1


@settings(max_examples=100, deadline=None)
@given(
    ANY,
    ANY,
    st.fixed_dictionaries(
        {
            "whitespace": st.sampled_from(["collapse", "keep", "remove"]),
            "unicode": st.sampled_from(["NFC", "NFKC", "none"]),
            "case": st.sampled_from(["keep", "ignore"]),
            "punctuation": st.sampled_from(["keep", "ignore"]),
            "tokens": st.sampled_from(["auto", "words", "characters"]),
            "fence": st.sampled_from(["strip", "keep"]),
        }
    ),
)
def test_any_text_scores_and_scores_one_against_itself(text: str, other: str, params: dict[str, str]) -> None:
    result = score(f"<answer>{text}</answer>", other, **params)
    assert all(0 <= value <= 1 for value in result.components.values())
    result.model_dump_json()
    if "<answer>" not in text and "</answer>" not in text:
        assert set(rewards(f"<answer>{text}</answer>", text, **params)) == {1}


@settings(max_examples=100, deadline=None)
@given(ANY)
def test_normal_texts_stay_as_they_are(text: str) -> None:
    normal = normalise(text)
    assert normalise(normal) == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert normal == normal.strip() and "  " not in normal


def test_half_a_surrogate_pair_is_a_character() -> None:
    result = score("a\ud800", "ab")
    assert (result.reward, result.parsed) == (0.5, {"text": "a?"})
    result.model_dump_json()


def test_long_texts_do_not_go_through_python() -> None:
    page = "".join(chr(97 + number * number % 26) for number in range(2_000))
    began = time.perf_counter()
    for _ in range(50):
        assert score(page, page[::-1]).outcome is Outcome.OK
    assert time.perf_counter() - began < 5  # two loops in Python take a second for each


def test_characters_that_are_not_looked_at_are_no_marks() -> None:
    passed = [char for char in map(chr, range(sys.maxunicode + 1)) if _WITHOUT_MARKS.fullmatch(char)]
    assert len(passed) > 40_000
    assert [char for char in passed if _is_mark(char)] == []
    assert _is_mark("\u0301") and _is_mark("\u0f73") and not _is_mark("é")


@pytest.mark.parametrize("unicode", ["NFC", "NFKC"])
def test_endless_combining_marks_are_left_alone(unicode: str) -> None:
    began = time.perf_counter()
    assert score(ENDLESS_MARKS, "a", unicode=unicode).reward == pytest.approx(0, abs=1e-4)
    assert score("!".join(ENDLESS_MARKS), "a", unicode=unicode, punctuation="ignore").outcome is Outcome.OK
    assert time.perf_counter() - began < 2  # each normalisation would take longer
