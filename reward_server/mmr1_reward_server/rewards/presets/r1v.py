"""r1v_accuracy: the accuracy reward of R1-V (Deep-Agent/R1-V@bbbbe3d), with math-verify 0.9.0.

1 when math-verify finds response and solution equal, or when their answers are the same text. Where the original is
wrong, and bug_compatible gives what it gave:
- It hands math-verify the whole texts, tags and reasoning included. So a "the answer is 3" in the reasoning wins over
  the answer itself, and no decimal or fraction is read next to a tag: <answer>3.0</answer> is not 3. Right: the
  answers alone.
- It passes the response as the truth and the truth as the response, which math-verify does not treat alike. Right:
  the other way round.
- It compares texts only of answers on one line; with a newline within the tags, all of the response is the answer.
  Right: tags may stand on lines of their own. It takes the first answer, right is the last.
Mathematics that math-verify cannot bring to an end (see mathematics.py) is compared as text only. So it is in the
original, which gives reading a text and comparing two 5 s each; here all of it has MAX_SECONDS of processor time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pydantic import TypeAdapter

from ...api import Example, Item, Outcome, Result
from ...mathematics import NotInstalled, TooLarge, are_equal, in_time, read_expression, read_whole
from ...parsing import find_answer
from ...registry import BadItem, InvalidOutput, Sample, Task, Verdict
from ...truths import TrueAnswer
from .reading import PresetParams, between_on_one_line

MAX_ANSWER_CHARS: Final = 1_000
MAX_SECONDS: Final = 3.0


def published_answer(text: str) -> str:
    """The first answer that is on one line, or else everything."""
    return next(between_on_one_line(text, "<answer>", "</answer>"), text).strip()


def _equal_by_math(response: str, solution: str) -> bool:
    true, read = read_expression(solution, MAX_ANSWER_CHARS), read_expression(response, MAX_ANSWER_CHARS)
    return read is not None and true is not None and are_equal(read, true)


def _equal_as_published(response: str, solution: str) -> bool:
    read, true = read_whole(response), read_whole(solution)
    return read is not None and true is not None and are_equal(true, read)


def _in_time(equal: Callable[[str, str], bool], response: str, solution: str) -> bool:
    """Raises BadItem without math-verify."""
    try:
        return in_time(MAX_SECONDS, lambda: equal(response, solution))
    except NotInstalled as error:
        raise BadItem(str(error)) from None
    except TooLarge:
        return False


def score(sample: Sample[str, PresetParams]) -> Verdict:
    bug_compatible = sample.params.bug_compatible
    if bug_compatible:
        answer, truth = published_answer(sample.response), published_answer(sample.solution)
        by_math = _in_time(_equal_as_published, sample.response, sample.solution)
    else:
        answer, truth = find_answer(sample.response).text.strip(), find_answer(sample.solution).text.strip()
        if not answer:
            raise InvalidOutput("the answer is empty")
        by_math = _in_time(_equal_by_math, answer, truth)
    right = by_math or answer == truth
    how = "as mathematics" if by_math else "as text"
    reward = 1.0 if right else 0.0
    shown = answer.encode("utf-8", "replace").decode("utf-8")
    return Verdict(reward, {"accuracy": reward}, {"answer": shown}, f"equal {how}" if right else "not equal")


R1V_ACCURACY = Task(
    name="r1v_accuracy",
    summary="R1-V's accuracy: math-verify (the extra math), or else the same text. bug_compatible: math-verify gets "
    "the whole texts, with the response as the truth, so reasoning can win over the answer and decimals next to tags "
    "are lost; texts are compared of the first answer on one line, or else everything.",
    formula="1 if the answer in the last <answer>...</answer>, after </think>, or else the whole response, is the same "
    "text as the solution's, or the same by math-verify; else 0. What math-verify cannot compare within "
    f"{MAX_SECONDS:g} s of processor time, or is beyond the limits of task accuracy, is compared as text (with "
    "bug_compatible, the limits on nesting and on the size of numbers).",
    floor=0.0,
    solution=TypeAdapter(TrueAnswer),
    params=PresetParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="r1v_accuracy",
            response="<think>the answer is 4</think><answer>3.0</answer>",
            solution="<answer> 3 </answer>",
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=1.0,
            components={"accuracy": 1.0},
            parsed={"answer": "3.0"},
            detail="equal as mathematics",
        ),
    ),
)
