"""vlmr1_weighted_sum and vlmr1_od_ap: detection as VLM-R1 rewards it (om-ai-lab/VLM-R1@90052f4).

Its methods `weighted_sum`, and `od_ap`, `od_ap50` and `odLength`. Both sides are a ```json list of {"bbox_2d", "label"}
or the word None, between answer tags. Where the originals are wrong, and bug_compatible gives what they gave:
- Both: what cannot be read counts as no boxes, so where there is nothing to find, broken JSON or any other words are
  full marks. Right: an answer without a list, other than None, is invalid.
- Both: of a box with more than four numbers the first four count. Right: it is no box.
- weighted_sum: an overlap at most 1 wide or high counts as none (see vlmr1.py). Right: the plain IoU.
- weighted_sum: an empty list is wrong where the truth is None. Right: both say the same.
- weighted_sum: a box without a label takes the label of the match before it, and fails without one (the floor here).
  Right: it has the empty label.
- od_ap: only the first 100 boxes of a label count. Right: all do.
- od_ap: a box inverted in one direction costs nothing (its negative area puts it out of COCO's range). Right: it counts
  as predicted and wrong, as one inverted in both does.
Not reproduced: pycocotools takes a box of NaN for a match of anything; here it is no match.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field, JsonValue, TypeAdapter, WithJsonSchema

from ...api import Example, Item, Outcome, Result
from ...box_parsing import MAX_REGIONS
from ...boxes import Floats, as_boxes, pairwise_iou
from ...coco_ap import Objects, average_precision
from ...coordinates import check_number
from ...registry import InvalidOutput, Sample, Task, Verdict
from .reading import Box, PresetParams, as_coordinates, as_true_box, between, read_json

_MIN_IOU = 0.5
_POSITION_WEIGHT = 0.7
_COMPLETENESS_WEIGHT = 0.3
_MAX_PER_LABEL = 100
_DIGITS = 12
_NO_BOX = (np.nan,) * 4


class TrueObject(NamedTuple):
    box: Box
    label: str


class OdParams(PresetParams):
    score: Literal["ap", "ap50"] = Field(
        "ap", description="over IoU thresholds 0.5 to 0.95 (od_ap), or at 0.5 (od_ap50)"
    )
    length_penalty: bool = Field(False, description="times n_true / n_predicted when more are predicted (odLength)")


def clean(text: str) -> str:
    """What weighted_sum compares: the last answer or else all, in lower case, newlines as spaces, no final point."""
    answers = list(between(text, "<answer>", "</answer>"))
    text = answers[-1] if answers else text
    for newline in "\n\r":
        parts = text.split(newline)
        # After other white space a newline is dropped, and the newline before it is white space too.
        text = parts[0] + "".join(
            ("" if (not before and place) or before[-1:].isspace() else " ") + part
            for place, (before, part) in enumerate(itertools.pairwise(parts))
        )
    return text.strip().rstrip(".").lower()


def read_items(blocks: Sequence[str], *, bug_compatible: bool) -> list[JsonValue]:
    """The list in the last block. Raises InvalidOutput when there is none, unless bug_compatible: then it is empty."""
    try:
        value = read_json(blocks[-1].strip())
    except (IndexError, ValueError):
        value = None
    if bug_compatible and not isinstance(value, list):
        value = list(value) if isinstance(value, dict | str) else []  # what Python iterates over
    if not isinstance(value, list):
        raise InvalidOutput("no ```json list in the answer")
    if len(value) > MAX_REGIONS:
        raise InvalidOutput(f"more than {MAX_REGIONS} boxes")
    return value


def read_box(item: JsonValue, *, bug_compatible: bool) -> list[float] | None:
    """An item's four numbers under bbox_2d, None when it has no such."""
    numbers = as_coordinates(item.get("bbox_2d")) if isinstance(item, dict) else None
    if numbers is None or len(numbers) < 4 or (len(numbers) > 4 and not bug_compatible):
        return None
    return numbers[:4]


def read_label(item: JsonValue) -> str | None:
    label = item.get("label") if isinstance(item, dict) else None
    return label if isinstance(label, str) else None


def match_greedily(overlaps: Floats) -> list[tuple[int, int]]:
    """(row, column) pairs from the largest overlap down to 0.5, each row and column once; of equal ones, the first."""
    flat = overlaps.ravel()
    large = np.flatnonzero(flat >= _MIN_IOU)
    pairs: list[tuple[int, int]] = []
    rows: set[int] = set()
    columns: set[int] = set()
    for place in large[np.argsort(-flat[large], kind="stable")].tolist():
        row, column = divmod(place, overlaps.shape[1])
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def score_weighted_sum(sample: Sample[list[TrueObject] | None, PresetParams]) -> Verdict:
    bug_compatible = sample.params.bug_compatible
    text = clean(sample.response)
    says_none = text == "none"
    if bug_compatible and sample.solution is None:
        return Verdict(float(says_none), {}, None, "the answer is None" if says_none else "the answer is not None")
    blocks = list(between(clean(text), "```json", "```"))
    items = [] if says_none else read_items(blocks[:1], bug_compatible=bug_compatible)
    boxes = [read_box(item, bug_compatible=bug_compatible) for item in items]
    parsed = _shown(boxes)
    true = sample.solution or []
    if not items or not true:
        return _one_side_empty(items, true, parsed)
    overlaps = _overlaps(boxes, true, bug_compatible=bug_compatible)
    pairs = match_greedily(overlaps)
    right = _rightly_labelled(pairs, items, true, bug_compatible=bug_compatible)
    position = sum(float(overlaps[pair]) for pair in right) / len(true)
    missing, redundant = 1 - len(pairs) / len(true), 1 - len(pairs) / len(items)
    completeness = 1 - (missing + redundant) / 2
    components = {"position": position, "label": len(right) / len(true), "completeness": completeness}
    reward = _POSITION_WEIGHT * position + _COMPLETENESS_WEIGHT * completeness
    return Verdict(reward, components, parsed, f"{len(pairs)} of {len(true)} found, {len(right)} with the right label")


def score_od_ap(sample: Sample[list[TrueObject] | None, OdParams]) -> Verdict:
    """Raises BadItem without pycocotools, InvalidOutput for an answer that cannot be read."""
    params = sample.params
    answers = list(between(sample.response, "<answer>", "</answer>"))
    if not answers:
        raise InvalidOutput("no <answer>...</answer>")
    answer = answers[-1].strip()
    blocks = list(between(answer, "```json", "```"))
    items = [] if answer == "None" else read_items(blocks, bug_compatible=params.bug_compatible)
    boxes = [read_box(item, bug_compatible=params.bug_compatible) for item in items]
    parsed = _shown(boxes)
    true = sample.solution or []
    if not items or not true:
        return _one_side_empty(items, true, parsed)
    precisions = average_precision(*_as_objects(boxes, items, true, bug_compatible=params.bug_compatible))
    # Their last digits depend on the order in which numpy adds, which depends on the processor.
    ap, ap50 = (round(precision, _DIGITS) for precision in precisions)
    reward = ap50 if params.score == "ap50" else ap
    components = {"ap": ap, "ap50": ap50}
    if params.length_penalty:
        components["length"] = min(1.0, len(true) / len(items))
        reward *= components["length"]
    return Verdict(reward, components, parsed, f"{len(items)} boxes for {len(true)}")


def _one_side_empty(items: list[JsonValue], true: list[TrueObject], parsed: JsonValue) -> Verdict:
    both = not items and not true
    return Verdict(float(both), {}, parsed, f"{len(items)} boxes for {len(true)}")


def _shown(boxes: Sequence[list[float] | None]) -> JsonValue:
    return {"boxes": [list(box) for box in boxes if box is not None and np.isfinite(box).all()]}


def _overlaps(boxes: Sequence[list[float] | None], true: list[TrueObject], *, bug_compatible: bool) -> Floats:
    """(N, M) IoU; what is no box overlaps nothing."""
    found = as_boxes([box or _NO_BOX for box in boxes])
    there = as_boxes([one.box for one in true])
    overlaps = pairwise_iou(found, there)
    if bug_compatible:
        corner = np.minimum(found[:, None, 2:], there[None, :, 2:]) - np.maximum(found[:, None, :2], there[None, :, :2])
        overlaps[~(corner > 1).all(axis=2)] = 0.0
    return overlaps


def _rightly_labelled(
    pairs: list[tuple[int, int]], items: list[JsonValue], true: list[TrueObject], *, bug_compatible: bool
) -> list[tuple[int, int]]:
    right = []
    previous: str | None = None if bug_compatible else ""
    for row, column in pairs:
        label = read_label(items[row])
        if label is None:
            label = previous
        elif bug_compatible:
            previous = label
        if label is None:
            raise InvalidOutput("the first box that matches has no label, where the original fails")
        if label.lower() == true[column].label.lower():
            right.append((row, column))
    return right


def _as_objects(
    boxes: Sequence[list[float] | None], items: list[JsonValue], true: list[TrueObject], *, bug_compatible: bool
) -> tuple[Objects, Objects]:
    """What was predicted and what is there, for COCO's AP; all scores are 1. What is no box is left out."""
    numbers: dict[str, int] = {}
    for one in true:
        numbers.setdefault(one.label, len(numbers) + 1)
    kept: list[list[float]] = []
    categories: list[int] = []
    for box, item in zip(boxes, items, strict=True):
        category = numbers.get(read_label(item) or "", 0)
        if box is None or not category or (bug_compatible and _goes_unseen(box, categories.count(category))):
            continue
        kept.append(box)
        categories.append(category)
    predicted = Objects(as_boxes(kept), categories, [1.0] * len(kept))
    there = [numbers[one.label] for one in true]
    return predicted, Objects(as_boxes([one.box for one in true]), there, [1.0] * len(there))


def _goes_unseen(box: list[float], num_before: int) -> bool:
    return num_before >= _MAX_PER_LABEL or (box[2] - box[0]) * (box[3] - box[1]) < 0


def _read_objects(blocks: Sequence[str], *, labelled: bool) -> list[TrueObject]:
    """A solution's list. Raises ValueError in words for the dataset's author."""
    if not blocks:
        raise ValueError("must hold a ```json list, or None, between answer tags")
    items = read_json(blocks[-1].strip())
    if not isinstance(items, list):
        raise ValueError("must hold a list")
    check_number(items)
    objects = []
    for item in items:
        box, label = read_box(item, bug_compatible=True), read_label(item)
        if labelled and label is None:
            raise ValueError("every box must have a label")
        objects.append(TrueObject(as_true_box(box), label or ""))
    return objects


def _read_weighted_sum_solution(solution: object) -> list[TrueObject] | None:
    text = clean(solution) if isinstance(solution, str) else ""
    return None if text == "none" else _read_objects(list(between(clean(text), "```json", "```"))[:1], labelled=False)


def _read_od_solution(solution: object) -> list[TrueObject] | None:
    answer = next(between(solution, "<answer>", "</answer>"), "").strip() if isinstance(solution, str) else ""
    return None if answer == "None" else _read_objects(list(between(answer, "```json", "```")), labelled=True)


_SCHEMA = WithJsonSchema(
    {"type": "string", "description": "```json list of bbox_2d and label, or None, in answer tags"}
)
WeightedSumSolution = Annotated[list[TrueObject] | None, BeforeValidator(_read_weighted_sum_solution), _SCHEMA]
OdSolution = Annotated[list[TrueObject] | None, BeforeValidator(_read_od_solution), _SCHEMA]

_EXAMPLE_RESPONSE = '<answer>```json\n[{"bbox_2d": [10, 10, 110, 110], "label": "cat"}]\n```</answer>'
_EXAMPLE_SOLUTION = (
    '<answer>```json\n[{"bbox_2d": [10, 10, 110, 110], "label": "cat"}, '
    '{"bbox_2d": [200, 200, 300, 320], "label": "dog"}]\n```</answer>'
)

VLMR1_WEIGHTED_SUM = Task(
    name="vlmr1_weighted_sum",
    summary="Detection as VLM-R1's weighted_sum rewards it: a ```json list of bbox_2d and label, or None. "
    "bug_compatible: unreadable answers are no boxes, full marks where there is nothing; [] is wrong for None; an "
    "overlap at most 1 wide or high is none; a missing label is the previous match's; numbers after the fourth are "
    "ignored.",
    formula="0.7 position + 0.3 (1 - (missing / n_true + redundant / n_predicted) / 2). Pairs are taken from the "
    "largest IoU down to 0.5; position is the sum of their IoU, 0 for a wrong label, over n_true. Both empty: "
    "1, one: 0.",
    floor=0.0,
    solution=TypeAdapter(WeightedSumSolution),
    params=PresetParams,
    score=score_weighted_sum,
    example=Example(
        item=Item(
            id="1",
            task="vlmr1_weighted_sum",
            response=_EXAMPLE_RESPONSE,
            solution=_EXAMPLE_SOLUTION,
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.575,
            components={"position": 0.5, "label": 0.5, "completeness": 0.75},
            parsed={"boxes": [[10.0, 10.0, 110.0, 110.0]]},
            detail="1 of 2 found, 1 with the right label",
        ),
    ),
)

VLMR1_OD_AP = Task(
    name="vlmr1_od_ap",
    summary="Detection as VLM-R1's od_ap, od_ap50 and odLength reward it: a ```json list of bbox_2d and label, or "
    "None. Needs the extra coco. bug_compatible: unreadable answers are no boxes, full marks where there is nothing; "
    "only the first 100 boxes of a label count; a box inverted in one direction costs nothing; numbers after the "
    "fourth are ignored.",
    formula="COCO's AP of the one image, all scores 1, so the first of several boxes counts; labels that the truth "
    "lacks cost nothing. length_penalty: times min(1, n_true / n_predicted). Both empty: 1, one: 0.",
    floor=0.0,
    solution=TypeAdapter(OdSolution),
    params=OdParams,
    score=score_od_ap,
    example=Example(
        item=Item(
            id="1",
            task="vlmr1_od_ap",
            response=_EXAMPLE_RESPONSE.replace("10, 110, 110", "10, 110, 60"),
            solution=_EXAMPLE_SOLUTION,
            params={"score": "ap50"},
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.5,
            components={"ap": 0.05, "ap50": 0.5},
            parsed={"boxes": [[10.0, 10.0, 110.0, 60.0]]},
            detail="1 boxes for 2",
        ),
    ),
)
