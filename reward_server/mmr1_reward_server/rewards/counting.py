"""counting: how many? Compares the number in the response with the true one. Boxes and points are not its business."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema

from ..api import Example, Item, Outcome, Result
from ..parsing import MAX_DIGITS, find_answer, find_numbers, read_number
from ..registry import InvalidOutput, Params, Sample, Task, Verdict


def _read_count(solution: object) -> int:
    """An integer from 0 on, or a text that is one. Raises ValueError in words for the dataset's author."""
    value = read_number(solution) if isinstance(solution, str) else solution
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) >= 10**MAX_DIGITS:
        raise ValueError("must be a count: an integer, or a text that is one, such as 3 or '3'")
    if value < 0 or value != int(value):
        raise ValueError("must be a whole number, and not negative")
    return int(value)


Count = Annotated[
    int,
    BeforeValidator(_read_count),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}]}),
]


class CountingParams(Params):
    score: Literal["exact", "graded"] = Field("exact", description="1 or 0; or one minus the relative error")


def read_prediction(response: str) -> float:
    """The count that a response states. Raises InvalidOutput when it states none, or several within its answer tags."""
    answer = find_answer(response)
    numbers = find_numbers(answer.text)
    where = "between the answer tags" if answer.tagged else "in the response"
    if not numbers:
        raise InvalidOutput(f"no number {where}")
    # Free text counts aloud ("3 here, 2 there, so 5") and ends with its result; tags are there to hold one result only.
    if answer.tagged and len(set(numbers)) > 1:
        raise InvalidOutput(f"{len(numbers)} different numbers {where}, where one is expected")
    return numbers[-1]


def score(sample: Sample[int, CountingParams]) -> Verdict:
    predicted, true = read_prediction(sample.response), sample.solution
    components = {
        "exact": 1.0 if predicted == true else 0.0,
        "graded": max(0.0, 1.0 - abs(predicted - true) / max(true, 1)),
    }
    shown = int(predicted) if predicted == int(predicted) else predicted
    return Verdict(components[sample.params.score], components, {"count": shown}, f"read {shown}, expected {true}")


COUNTING = Task(
    name="counting",
    summary="The number in the last <answer>...</answer>, or the last one of the response, against the true count.",
    formula="exact: 1 if predicted = true else 0. graded: max(0, 1 - |predicted - true| / max(true, 1)).",
    floor=0.0,
    solution=TypeAdapter(Count),
    params=CountingParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="counting",
            response="<answer>3</answer>",
            solution="4",
            params={"score": "graded"},
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.75,
            components={"exact": 0.0, "graded": 0.75},
            parsed={"count": 3},
            detail="read 3, expected 4",
        ),
    ),
)
