"""vlmr1_iou: referring expressions as VLM-R1 rewards them (om-ai-lab/VLM-R1@90052f4, `iou_reward` of task `rec`).

Where the original is wrong, and bug_compatible gives what it gave:
- Its IoU takes one pixel off the lower right corners and back on again, so an overlap of at most 1 in width or height
  is none: thin boxes, and all boxes in coordinates from 0 to 1, always score 0. Right: the plain IoU.
- It reads boxes of unsigned integers only, with no space after the bracket. Right: decimals and signs too.
The original opens the image for its size; here the caller sends `image_size`, and `resized_size` is what the original
takes from the processor's grid (`image_grid_thw` times 14), as width and height.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, JsonValue, TypeAdapter, WithJsonSchema

from ...api import Example, Item, Outcome, Pixels, Result
from ...boxes import MAX_COORDINATE, iou
from ...registry import BadItem, InvalidOutput, Sample, Task, Verdict
from .reading import Box, PresetParams, as_coordinates, as_true_box, between, read_json

# All repetitions are possessive: what has been matched is never tried in another way.
_N = r"([+-]?+\d++(?:\.\d*+)?+)\s*+"
_ANY_BOX = re.compile(rf"\[\s*+{_N},\s*+{_N},\s*+{_N},\s*+{_N}\]")
_INTEGER_BOX = re.compile(r"\[(\d++),\s*+(\d++),\s*+(\d++),\s*+(\d++)\]")


class IouParams(PresetParams):
    resized_size: tuple[Pixels, Pixels] | None = Field(
        None,
        description="width and height of the image that the model saw, whose pixels the response is in; needs "
        "image_size. Without it, response and solution are in the same coordinates",
    )


def published_iou(first: Box, second: Box) -> float:
    """The IoU, but 0 when the overlap is at most 1 wide or high."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return iou(first, second) if width > 1 and height > 1 else 0.0


def find_box(response: str, *, bug_compatible: bool) -> Box:
    """The first box within the first answer tags. Raises InvalidOutput."""
    answer = next(between(response, "<answer>", "</answer>"), None)
    if answer is None:
        raise InvalidOutput("no <answer>...</answer>")
    match = (_INTEGER_BOX if bug_compatible else _ANY_BOX).search(answer)
    numbers = [float(number) for number in match.groups()] if match else []
    if not numbers or not all(math.fabs(number) <= MAX_COORDINATE for number in numbers):
        raise InvalidOutput("no [x1, y1, x2, y2] between the answer tags")
    left, top, right, bottom = numbers
    return left, top, right, bottom


def score(sample: Sample[Box, IouParams]) -> Verdict:
    params = sample.params
    box = find_box(sample.response, bug_compatible=params.bug_compatible)
    parsed: JsonValue = {"bbox_2d": list(box)}  # as the response says it, whose params say what its numbers count
    if params.resized_size is not None:
        if sample.image_size is None:
            raise BadItem("resized_size needs the item's image_size")
        x, y = (size / resized for size, resized in zip(sample.image_size, params.resized_size, strict=True))
        box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    overlap = (published_iou if params.bug_compatible else iou)(box, sample.solution)
    return Verdict(overlap, {"iou": overlap}, parsed, f"IoU {overlap:.3f}")


def _read_solution(solution: object) -> Box:
    answers = list(between(solution, "<answer>", "</answer>")) if isinstance(solution, str) else []
    if not answers:
        raise ValueError("must be a text with <answer>[x1, y1, x2, y2]</answer>")
    return as_true_box(as_coordinates(read_json(answers[-1])))


AnswerBox = Annotated[
    Box,
    BeforeValidator(_read_solution),
    WithJsonSchema({"type": "string", "description": "the box as JSON between answer tags"}),
]

VLMR1_IOU = Task(
    name="vlmr1_iou",
    summary="Referring expressions as VLM-R1 rewards them: the first box between the first answer tags. "
    "bug_compatible: an overlap at most 1 wide or high counts as none, so boxes in coordinates from 0 to 1 always "
    "score 0, and only boxes of unsigned integers are read.",
    formula="The IoU, after scaling the response by image_size / resized_size where that is given.",
    floor=0.0,
    solution=TypeAdapter(AnswerBox),
    params=IouParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="vlmr1_iou",
            response='<think>a dog</think><answer>{"bbox_2d": [10, 10, 60, 110]}</answer>',
            solution="<answer> [20, 20, 120, 120] </answer>",
            params={"resized_size": [280, 280]},
            image_size=(560, 280),
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=9000 / 11000,
            components={"iou": 9000 / 11000},
            parsed={"bbox_2d": [10.0, 10.0, 60.0, 110.0]},
            detail="IoU 0.818",
        ),
    ),
)
