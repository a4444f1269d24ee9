"""mmr1_ocr and mmr1_grounding: the rewards of MMR1, the predecessor of Perception-R1 (linkangheng/MMR1@a2f8a03).

Its `perpo_ocr_edit_distance_reward` and `perpo_reward`. Where they are wrong, and bug_compatible gives what they gave:
- OCR: an empty text read for an empty truth divides by zero, which its handler turns into 0. Right: 1.
- Grounding: the answer is run with `eval`, and of a list of more than four numbers the first four count. Right: such a
  list is no box. An infinite box scores 0, which is more than a finite one beside the target. Right: it is no box.
The originals' training loop, logging and other metrics (BLEU, METEOR) are left out: they change no reward.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BeforeValidator, JsonValue, StringConstraints, TypeAdapter, WithJsonSchema
from rapidfuzz.distance import Levenshtein

from ...api import Example, Item, Outcome, Result
from ...boxes import MAX_COORDINATE, iou
from ...registry import InvalidOutput, Sample, Task, Verdict
from ...truths import number_as_text
from .reading import Box, BoxText, PresetParams, read_list

_MAX_SOLUTION_CHARS = 100_000  # two texts of this length take half a second
TrueText = Annotated[
    str,
    StringConstraints(max_length=_MAX_SOLUTION_CHARS),
    BeforeValidator(number_as_text),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": _MAX_SOLUTION_CHARS}, {"type": "number"}]}),
]
_NO_OVERLAP = -0.2
_INVERTED = -0.6
_UNREADABLE = -1.0


def score_ocr(sample: Sample[str, PresetParams]) -> Verdict:
    """max(0, 1 - edits / longer), over texts whose runs of white space are one space each."""
    read, true = " ".join(sample.response.split()), " ".join(sample.solution.split())
    longer = max(len(read), len(true))
    if longer == 0:
        reward = 0.0 if sample.params.bug_compatible else 1.0
        return Verdict(reward, {"edits": 0.0}, {"text": ""}, "there is nothing to read, and nothing was read")
    edits = Levenshtein.distance(read, true)
    reward = max(0.0, 1.0 - edits / longer)
    # Half a surrogate pair can be compared, and not sent.
    shown = read.encode("utf-8", "replace").decode("utf-8")
    return Verdict(reward, {"edits": float(edits)}, {"text": shown}, f"{edits} edits in {longer} characters")


def score_grounding(sample: Sample[Box, PresetParams]) -> Verdict:
    """The square of the IoU, or a penalty for a box that misses or is inverted. Raises InvalidOutput for no box."""
    numbers = read_list(sample.response)
    if numbers is None or len(numbers) < 4:
        raise InvalidOutput("the response is not [x1, y1, x2, y2] and nothing else")
    box = numbers[:4]
    finite = all(math.fabs(number) <= MAX_COORDINATE for number in box)
    if not sample.params.bug_compatible and not (finite and len(numbers) == 4):
        raise InvalidOutput(f"{len(numbers)} numbers, where a box has four" if finite else "the box is infinite")
    parsed: JsonValue = {"bbox_2d": list(box)} if finite else None
    true = sample.solution
    if box[0] > box[2] or box[1] > box[3]:
        return Verdict(_INVERTED, {"iou": 0.0}, parsed, "the box is inverted")
    if min(box[2], true[2]) <= max(box[0], true[0]) or min(box[3], true[3]) <= max(box[1], true[1]):
        return Verdict(_NO_OVERLAP, {"iou": 0.0}, parsed, "the box misses the target")
    overlap = iou(box, true)
    return Verdict(overlap**2, {"iou": overlap}, parsed, f"IoU {overlap:.3f}")


MMR1_OCR = Task(
    name="mmr1_ocr",
    summary="OCR as MMR1 rewards it: the edit distance of the whole response to the true text. "
    "bug_compatible: an empty response to an empty truth gives 0 instead of 1.",
    formula="max(0, 1 - edits / max(len(response), len(solution))), runs of white space as one space. Both empty: 1.",
    floor=0.0,
    solution=TypeAdapter(TrueText),
    params=PresetParams,
    score=score_ocr,
    example=Example(
        item=Item(id="1", task="mmr1_ocr", response="hello  word", solution="hello world", image_size=None),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=1.0 - 1 / 11,
            components={"edits": 1.0},
            parsed={"text": "hello word"},
            detail="1 edits in 11 characters",
        ),
    ),
)

MMR1_GROUNDING = Task(
    name="mmr1_grounding",
    summary="Grounding as MMR1 rewards it (perpo): the response is one box, in the solution's coordinates. "
    "bug_compatible: numbers after the fourth are ignored, and an infinite box scores 0; otherwise both are no box.",
    formula="IoU squared; -0.2 without overlap; -0.6 for an inverted box; -1 for anything but [x1, y1, x2, y2].",
    floor=_UNREADABLE,
    solution=TypeAdapter(BoxText),
    params=PresetParams,
    score=score_grounding,
    example=Example(
        item=Item(id="1", task="mmr1_grounding", response="[0, 0, 10, 5]", solution="[0, 0, 10, 10]", image_size=None),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.25,
            components={"iou": 0.5},
            parsed={"bbox_2d": [0.0, 0.0, 10.0, 5.0]},
            detail="IoU 0.500",
        ),
    ),
)
