"""accuracy: is the answer right? By mathematics, by the letter of a choice, or by the text. Knows no graded truth."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, TypeAdapter

from ..api import Example, Item, Outcome, Result
from ..choices import find_choice, read_leading_letter, read_letter
from ..mathematics import (
    MAX_BARS,
    MAX_BITS,
    MAX_BRACKETS,
    MAX_INTEGRALS,
    MAX_NESTING,
    MAX_SEARCHED,
    MAX_SERIES,
    Expression,
    NotInstalled,
    TooLarge,
    TooSlow,
    are_equal,
    in_time,
    looks_mathematical,
    read_expression,
)
from ..parsing import find_answer, find_boxed
from ..registry import BadItem, InvalidOutput, Params, Sample, Task, Verdict
from ..text import normalise
from ..truths import TrueAnswer

_SET_AS_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
Method = Literal["math", "choice", "exact"]
# Of processor time. Together they are within the server's default deadline.
_TRUTH_SECONDS = 1.5  # to read the truth
_ANSWER_SECONDS = 2.0  # to read the answer, and compare the two
_TRIAL_SECONDS = 0.5
# No part of an answer when they stand around it. Signs that mean something there (-, %, #, $) are absent.
_TRIMMED = " .,;:!?\"'`*_()[]{}\u2018\u2019\u201c\u201d\u00ab\u00bb\u3001\u3002\u300a\u300b\u300c\u300d\u300e\u300f"


class AccuracyParams(Params):
    method: Literal["auto", "math", "choice", "exact"] = Field(
        "auto",
        description="auto: choice if the solution is an option's letter, alone or as in (B) cat, math if it is a "
        "formula, else exact",
    )
    options: str = Field(
        "ABCDEFGHIJ", pattern="^[A-Z]{2,26}$", description="choice: the letters there are; others are not seen"
    )
    max_math_chars: int = Field(
        500,
        ge=1,
        le=10_000,
        description="math: more of them, in the last \\boxed or formula of the answer, are invalid_output",
    )


def choose_method(truth: str, options: str) -> Method:
    """What `auto` is for a solution. The response has no say: a model must not choose how it is judged."""
    if read_letter(truth, options) or read_leading_letter(truth, options):
        return "choice"
    return "math" if looks_mathematical(truth) else "exact"


def plain(text: str) -> str:
    """A text as exact compares it: out of \\boxed and \\text, in NFKC, without case, with single spaces, trimmed."""
    boxed = find_boxed(text)
    text = text if boxed is None else boxed
    latex = _SET_AS_TEXT.fullmatch(text.strip())
    return normalise(latex.group(1) if latex else text, unicode="NFKC", case="ignore").strip(_TRIMMED)


def _by_math(answer: str, truth: str, max_chars: int) -> tuple[bool, str]:
    true = _read_truth(truth, max_chars)

    def compare() -> tuple[bool, str]:
        read = read_expression(answer, max_chars)
        if read is None:
            raise InvalidOutput("there is no mathematics in the answer")
        return are_equal(read, true), read.text

    try:
        return in_time(_ANSWER_SECONDS, compare)
    except TooLarge as error:
        if isinstance(error, TooSlow):
            _check_comparable(true)
        raise InvalidOutput(f"the answer cannot be compared: {error}") from None


def _read_truth(truth: str, max_chars: int) -> Expression:
    try:
        expression = in_time(_TRUTH_SECONDS, lambda: read_expression(truth, max_chars))
    except NotInstalled as error:
        raise BadItem(str(error)) from None
    except TooLarge as error:
        raise BadItem(f"solution for task accuracy: cannot be compared: {error}") from None
    if expression is None:
        raise BadItem("solution for task accuracy: math-verify finds no mathematics in it; is the method right?")
    return expression


def _check_comparable(true: Expression) -> None:
    """Raises BadItem for a truth that cannot be compared with 0: then it is not the answer that is slow."""
    try:
        zero = read_expression("0", 1)
        assert zero is not None
        in_time(_TRIAL_SECONDS, lambda: are_equal(zero, true))
    except TooLarge as error:
        raise BadItem(f"solution for task accuracy: cannot be compared: {error}") from None


def _by_choice(answer: str, truth: str, options: str) -> tuple[bool, str]:
    true = read_letter(truth, options) or read_leading_letter(truth, options)
    if true is None:
        raise BadItem(f"solution for task accuracy: must name one of the options {options}")
    choice = find_choice(answer, options)
    if choice.letter is None:
        raise InvalidOutput(f"the answer {choice.fault}")
    return choice.letter == true, choice.letter


def _by_text(answer: str, truth: str) -> tuple[bool, str]:
    true, read = plain(truth), plain(answer)
    if not true:
        raise BadItem("solution for task accuracy: must hold more than punctuation")
    if not read:
        raise InvalidOutput("the answer is empty")
    return read == true, read


def score(sample: Sample[str, AccuracyParams]) -> Verdict:
    params = sample.params
    # Some datasets hold the solution in the tags that they ask of the response.
    wrapped = find_answer(sample.solution)
    truth = wrapped.text if wrapped.tagged else sample.solution
    answer = find_answer(sample.response).text
    method = choose_method(truth, params.options) if params.method == "auto" else params.method
    if method == "math":
        right, read = _by_math(answer, truth, params.max_math_chars)
    elif method == "choice":
        right, read = _by_choice(answer, truth, params.options)
    else:
        right, read = _by_text(answer, truth)
    reward = 1.0 if right else 0.0
    shown = read.encode("utf-8", "replace").decode("utf-8")
    detail = f"{'right' if right else 'wrong'} by {method}"
    return Verdict(reward, {"accuracy": reward}, {"answer": shown, "method": method}, detail)


ACCURACY = Task(
    name="accuracy",
    summary="The answer in the last <answer>...</answer>, after </think>, or else in the whole response, against the "
    "right one: by math-verify (the extra `math`), by the letter of a choice, or as text.",
    formula="1 if right, else 0. auto: choice if the solution is one letter of `options`, alone or leading (B. cat, "
    "(B) cat); math if it has no word, but a digit or a command of LaTeX's; else exact. exact: equal in NFKC, without "
    "case and without punctuation around. math: the last \\boxed, or else the last formula in the last "
    f"{MAX_SEARCHED} characters. It is invalid_output when it has more than `max_math_chars` characters, brackets more "
    f"than {MAX_NESTING} deep or more than {MAX_BRACKETS} of them, {MAX_BARS} vertical bars, {MAX_SERIES} sums, "
    f"products and limits, {MAX_INTEGRALS} integrals, numbers of more than {MAX_BITS} bits, or takes more than "
    f"{_ANSWER_SECONDS:g} s of processor time.",
    floor=0.0,
    solution=TypeAdapter(TrueAnswer),
    params=AccuracyParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="accuracy",
            response="<think>It barks.</think><answer>(B) a dog</answer>",
            solution="B",
            params={"options": "ABCD"},
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=1.0,
            components={"accuracy": 1.0},
            parsed={"answer": "B", "method": "choice"},
            detail="right by choice",
        ),
    ),
)
