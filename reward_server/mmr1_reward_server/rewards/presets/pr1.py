"""pr1_grounding and pr1_counting: the rewards of Perception-R1 (linkangheng/PR1, as philipmit/PR1@accb7cb holds them).

Both read Qwen2-VL's own notation, special tokens included, so the response must come with them. Coordinates are on
a grid of 0 to 1000. Where the originals are wrong, and bug_compatible gives what they gave:
- Grounding: coordinates without box tokens are multiplied by 1000 and cut off to integers (0.57 becomes 569). Right:
  they are not cut off.
- Grounding, format: the pattern's `|` are not escaped, so each is an "or", and all that begins with "<", ">" or the
  name of a token passes. Right: the tokens themselves, in their order.
- Counting: the distance of a box far off the grid counts in full, so rewards have no lower bound. Right: at most the
  grid's diagonal. And boxes after <|im_end|> count too. Right: they are not part of the answer.
The grounding original fails on an inverted box of exactly the target's size (it divides by zero): 0 here.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field, FiniteFloat, JsonValue, TypeAdapter

from ...api import Example, Item, Outcome, Result
from ...box_parsing import MAX_REGIONS
from ...boxes import MAX_COORDINATE, as_boxes, centres, iou
from ...coordinates import MAX_OBJECTS, check_number
from ...matching import match_points
from ...registry import InvalidOutput, Sample, Task, Verdict
from .reading import Box, BoxText, PresetParams, between_on_one_line, or_as_text, read_literal, read_true_json

GRID = 1000.0
_DIAGONAL = GRID * math.sqrt(2)

_REF = ("<|object_ref_start|>", "<|object_ref_end|>")
_BOX = ("<|box_start|>", "<|box_end|>")
_END = "<|im_end|>"
_PADDING = "<|endoftext|>"
# What the unescaped pattern lets pass, at the very beginning.
_ALTERNATIVES = ("<", ">", "object_ref_start", "object_ref_end", "box_start", "box_end", "im_end")

# All repetitions are possessive: what has been matched is never tried in another way.
_N = r"(-?+\d++(?:\.\d++)?+)"
_NOTATIONS = (
    re.compile(rf"\[\s*+{_N},\s*+{_N},\s*+{_N},\s*+{_N}\s*+\]"),
    re.compile(rf"\(\s*+{_N},\s*+{_N},\s*+{_N},\s*+{_N}\s*+\)"),
    re.compile(rf"\(\s*+{_N},\s*+{_N}\),\s*+\(\s*+{_N},\s*+{_N}\)"),
)
_COUNTED = re.compile(
    r"<\|object_ref_start\|>[^<]*+<\|object_ref_end\|>(?:<\|box_start\|>[^<]*+<\|box_end\|>)++<\|im_end\|>"
)
_B = r"[ \t]*+"
_L = r"([+-]?+[0-9.]++(?:[eE][+-]?+[0-9]++)?+)"
_POINT = rf"{_B}(?:\({_B}{_L}{_B},{_B}{_L}{_B}\)|\[{_B}{_L}{_B},{_B}{_L}{_B}\]){_B}"
_CORNERS = re.compile(rf"{_POINT},{_POINT},?+{_B}")
_AROUND = {"((": ")", "([": ")", "[(": "]", "[[": "]"}


class GroundingParams(PresetParams):
    score: Literal["iou_squared", "format", "sum"] = Field(
        "iou_squared", description="which of the two published rewards, or both added up"
    )


def find_box(text: str, *, bug_compatible: bool) -> list[float] | None:
    """The first [x, y, x, y] of a text, or else (x, y, x, y), or else (x, y),(x, y), on the grid; None without one."""
    match = next((match for notation in _NOTATIONS if (match := notation.search(text))), None)
    numbers = [float(number) for number in match.groups()] if match else []
    if not numbers or not all(math.fabs(number) <= MAX_COORDINATE for number in numbers):
        return None
    if _BOX[0] in text:
        return numbers
    scaled = [number * GRID for number in numbers]
    return [float(int(number)) for number in scaled] if bug_compatible else scaled


def is_laid_out(text: str, *, bug_compatible: bool) -> bool:
    """Whether a text begins with an object, one box and the end token, all on one line."""
    if bug_compatible:
        return text.startswith(_ALTERNATIVES)
    line = text.split("\n", 1)[0]
    if not line.startswith(_REF[0]):
        return False
    box_begin = line.find(_REF[1] + _BOX[0], len(_REF[0]))
    return box_begin >= 0 and line.find(_BOX[1] + _END, box_begin + len(_REF[1] + _BOX[0])) >= 0


def score_grounding(sample: Sample[Box, GroundingParams]) -> Verdict:
    text, params = sample.response.replace(_PADDING, ""), sample.params
    box = find_box(text, bug_compatible=params.bug_compatible)
    if box is None and params.score == "iou_squared":
        raise InvalidOutput("no box in any of the notations that the original reads")
    overlap = iou(box, sample.solution) if box else 0.0
    laid_out = 1.0 if is_laid_out(text, bug_compatible=params.bug_compatible) else 0.0
    components = {"iou": overlap, "iou_squared": overlap**2, "format": laid_out}
    reward = {"iou_squared": overlap**2, "format": laid_out, "sum": overlap**2 + laid_out}[params.score]
    detail = f"IoU {overlap:.3f}, " + ("laid out as asked" if laid_out else "not laid out as asked")
    return Verdict(reward, components, {"bbox_2d": list(box)} if box else None, detail)


def read_boxes(text: str) -> list[list[float]]:
    """All `(x, y),(x, y)` between box tokens; what else stands there is left out. Raises InvalidOutput for too many."""
    boxes = []
    for inside in between_on_one_line(text, *_BOX):
        if _AROUND.get(inside[:2]) == inside[-1:] and inside[-2:-1] in (")", "]"):
            inside = inside[1:-1]
        match = _CORNERS.fullmatch(inside)
        numbers = [read_literal(number) for number in match.groups() if number is not None] if match else []
        corners = [number for number in numbers if number is not None and math.fabs(number) <= MAX_COORDINATE]
        if len(corners) == 4:
            boxes.append(corners)
    if len(boxes) > MAX_REGIONS:
        raise InvalidOutput(f"more than {MAX_REGIONS} boxes")
    return boxes


def score_counting(sample: Sample[list[tuple[float, float]], PresetParams]) -> Verdict:
    """How many, and how near: min(n, m) / max(n, m) x (1 - mean distance / diagonal) of the n centres matched."""
    answer = _COUNTED.match(sample.response)
    if answer is None:
        raise InvalidOutput("the response does not begin with an object, its boxes and the end token")
    text = sample.response.replace(_PADDING, "") if sample.params.bug_compatible else answer.group()
    boxes = read_boxes(text)
    if not boxes:
        raise InvalidOutput("no box between box tokens is (x1,y1),(x2,y2)")
    parsed: JsonValue = {"boxes": [list(box) for box in boxes]}
    counts = {"predicted": float(len(boxes)), "true": float(len(sample.solution))}
    if not sample.solution:
        return Verdict(0.0, counts, parsed, f"read {len(boxes)}, expected none")
    _, distances = match_points(centres(as_boxes(boxes)), np.asarray(sample.solution, dtype=np.float64))
    relative = distances / _DIAGONAL
    nearness = 1.0 - float((relative if sample.params.bug_compatible else relative.clip(max=1.0)).mean())
    share = min(counts.values()) / max(counts.values())
    components = {**counts, "share": share, "nearness": nearness}
    return Verdict(share * nearness, components, parsed, f"read {len(boxes)}, expected {len(sample.solution)}")


def _read_points(solution: object) -> object:
    points = read_true_json(solution, "[[100, 100]]")
    if isinstance(points, list):
        check_number(points)
    return points


_ListOfPoints = list[tuple[FiniteFloat, FiniteFloat]]
_POINTS_SCHEMA = {**TypeAdapter(_ListOfPoints).json_schema(), "maxItems": MAX_OBJECTS}
Points = Annotated[_ListOfPoints, BeforeValidator(_read_points), or_as_text(_POINTS_SCHEMA)]

PR1_GROUNDING = Task(
    name="pr1_grounding",
    summary="Grounding as Perception-R1 rewards it: the first box of the response on a grid of 1000, and the layout "
    "of Qwen2-VL's tokens. bug_compatible: coordinates without box tokens are cut off to integers after scaling; as "
    'format passes whatever begins with "<", ">" or the name of a token.',
    formula="iou_squared: IoU squared. format: 1 for <|object_ref_start|>..<|object_ref_end|><|box_start|>..<|box_end|>"
    "<|im_end|> at the beginning, else 0. sum: both. Without box tokens in the response, coordinates are times 1000.",
    floor=0.0,
    solution=TypeAdapter(BoxText),
    params=GroundingParams,
    score=score_grounding,
    keeps_special_tokens=True,
    example=Example(
        item=Item(
            id="1",
            task="pr1_grounding",
            response="<|object_ref_start|>dog<|object_ref_end|><|box_start|>(100,200),(300,300)<|box_end|><|im_end|>",
            solution="[100, 200, 300, 400]",
            params={"score": "sum"},
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=1.25,
            components={"iou": 0.5, "iou_squared": 0.25, "format": 1.0},
            parsed={"bbox_2d": [100.0, 200.0, 300.0, 300.0]},
            detail="IoU 0.500, laid out as asked",
        ),
    ),
)

PR1_COUNTING = Task(
    name="pr1_counting",
    summary="Counting as Perception-R1 rewards it: boxes in Qwen2-VL's tokens against true points, on a grid of 1000. "
    "The solution is [[x, y], ...], or its JSON text. bug_compatible: distances have no upper bound, so rewards can be "
    "below 0, and boxes after <|im_end|> count.",
    formula="min(n, m) / max(n, m) * (1 - mean distance / (1000 * sqrt 2)), over boxes' centres and points matched for "
    "the smallest total distance, each distance at most 1000 * sqrt 2.",
    floor=0.0,
    solution=TypeAdapter(Points),
    params=PresetParams,
    score=score_counting,
    keeps_special_tokens=True,
    example=Example(
        item=Item(
            id="1",
            task="pr1_counting",
            response="<|object_ref_start|>dog<|object_ref_end|><|box_start|>(0,0),(200,200)<|box_end|><|im_end|>",
            solution=[[100, 100], [500, 500]],
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.5,
            components={"predicted": 1.0, "true": 2.0, "share": 0.5, "nearness": 1.0},
            parsed={"boxes": [[0.0, 0.0, 200.0, 200.0]]},
            detail="read 1, expected 2",
        ),
    ),
)
