"""detection: what is where? All boxes of the response, with their labels, against the true ones.

How boxes overlap is decided in `boxes`, which are matched in `matching`, COCO's AP in `coco_ap`.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema, model_validator

from ..api import Example, Item, Outcome, Result
from ..box_parsing import Reading, Region, read_regions
from ..boxes import Bools, Floats, as_boxes, pairwise_coverage, pairwise_iou, reaching
from ..coco_ap import Objects, average_precision
from ..coordinates import (
    BOX_SCHEMA,
    MAX_OBJECTS,
    TEXT_SCHEMA,
    BoxTuple,
    CoordinateParams,
    TrueBox,
    check_number,
    check_within_image,
    from_text,
    to_solution_space,
)
from ..matching import Pairs, match_overlaps
from ..parsing import find_answer
from ..registry import InvalidOutput, Params, Sample, Task, Verdict

Weight = Annotated[float, Field(ge=0, le=1e6)]


class TrueObject(BaseModel):
    """One true object: its box, under either of the two usual names, and its label.

    With `iscrowd` 1, as in COCO, the box is a region with many objects: what is found there counts neither way.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bbox_2d: TrueBox | None = None
    bbox: TrueBox | None = None
    label: str = ""
    iscrowd: Literal[0, 1, False, True] = 0

    @model_validator(mode="after")
    def _one_box(self) -> TrueObject:
        if (self.bbox_2d is None) == (self.bbox is None):
            raise ValueError("needs its box under one of the names bbox_2d and bbox")
        return self

    @property
    def box(self) -> BoxTuple:
        box = self.bbox_2d or self.bbox
        assert box is not None
        return box


_OBJECT_SCHEMA = {
    "type": "object",
    "properties": {
        "bbox_2d": BOX_SCHEMA,
        "bbox": BOX_SCHEMA,
        "label": {"type": "string", "default": ""},
        "iscrowd": {"enum": [0, 1, False, True], "default": 0, "description": "1: what is found there is ignored"},
    },
    "additionalProperties": False,
    "description": "its box under one of the two names",
}


def _read_truth(solution: object) -> object:
    objects = from_text(solution)
    if isinstance(objects, list):
        check_number(objects)
    return objects


TrueObjects = Annotated[
    list[TrueObject],
    BeforeValidator(_read_truth),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _OBJECT_SCHEMA, "maxItems": MAX_OBJECTS}, TEXT_SCHEMA]}),
]


class Weights(Params):
    """Of the terms of score `weighted`; only their ratios matter. missing and redundant weigh 1 minus the component."""

    f1: Weight = 1.0
    mean_iou: Weight = 1.0
    label: Weight = 0.0
    missing: Weight = 0.0
    redundant: Weight = 0.0

    @model_validator(mode="after")
    def _not_all_zero(self) -> Weights:
        if not any(weight for _, weight in self):
            raise ValueError("weights that are all 0 leave nothing to score: make one of them positive")
        return self


class DetectionParams(CoordinateParams):
    score: Literal["weighted", "f1", "coco_ap", "coco_ap50"] = Field(
        "weighted", description="coco_ap is the mean over the IoU thresholds 0.50, 0.55 ... 0.95; needs the extra coco"
    )
    iou_threshold: float = Field(0.5, gt=0, le=1, description="the least IoU of a matched pair; COCO's AP has its own")
    match_labels: bool = Field(True, description="match boxes of equal labels only, case and spaces around them aside")
    weights: Weights = Weights()


def read_prediction(response: str) -> Reading:
    """The boxes of a response. Raises InvalidOutput when it neither gives one nor says that there are none."""
    answer = find_answer(response)
    reading = read_regions(answer.text)
    if not reading.boxes and not reading.says_none:
        where = "between the answer tags" if answer.tagged else "in the response"
        why = "it was cut off" if reading.cut else "an empty list [] would say that there are none"
        raise InvalidOutput(f"no complete box {where}: {why}")
    return reading


class Compared(NamedTuple):
    """A response's boxes against the M true objects that are no crowd. Boxes are in the solution's space.

    `objects` are the places of those M in the solution; `in_crowd` are the predicted boxes that count neither way.
    """

    reading: Reading
    predicted: Floats  # (N, 4)
    categories: list[int]
    true: Floats  # of the whole solution, as true_categories are
    true_categories: list[int]
    objects: list[int]
    overlaps: Floats  # (N, M)
    same_label: Bools  # (N, M)
    pairs: Pairs
    in_crowd: Bools  # (N,)


def compare(sample: Sample[list[TrueObject], DetectionParams]) -> Compared:
    """Which box of the response is which of the solution's. Raises BadItem and InvalidOutput."""
    params, truth = sample.params, sample.solution
    check_within_image((value for one in truth for value in one.box), params, sample.image_size)
    factors = to_solution_space(params, sample.image_size)
    reading = read_prediction(sample.response)
    found = reading.boxes
    predicted = as_boxes([box.coordinates for box in found]) * np.array([*factors, *factors])
    true = as_boxes([one.box for one in truth])
    categories, true_categories = _categories(found, truth)
    objects = [place for place, one in enumerate(truth) if not one.iscrowd]
    crowds = [place for place, one in enumerate(truth) if one.iscrowd]
    same = np.array(categories, dtype=np.int64)[:, None] == np.array(true_categories, dtype=np.int64)[None, :]
    overlaps, same_label = pairwise_iou(predicted, true[objects]), same[:, objects]
    pairs = match_overlaps(
        overlaps, params.iou_threshold, allowed=same_label if params.match_labels else None, preferred=same_label
    )
    within = reaching(pairwise_coverage(predicted, true[crowds]), params.iou_threshold)
    if params.match_labels:
        within &= same[:, crowds]
    in_crowd: Bools = np.asarray(within.any(axis=1), dtype=np.bool_)
    in_crowd[[row for row, _ in pairs]] = False  # an object goes before a crowd
    return Compared(
        reading, predicted, categories, true, true_categories, objects, overlaps, same_label, pairs, in_crowd
    )


def score(sample: Sample[list[TrueObject], DetectionParams]) -> Verdict:
    params, truth = sample.params, sample.solution
    compared = compare(sample)
    reading, pairs = compared.reading, compared.pairs
    found = reading.boxes
    components = _components(compared, params.weights)
    if params.score in ("coco_ap", "coco_ap50"):
        components["coco_ap"], components["coco_ap50"] = _coco_ap(compared, truth, params.match_labels)
    num_ignored = int(compared.in_crowd.sum())
    ignored = f", {num_ignored} in crowds" if num_ignored else ""
    cut = "; the response was cut off, its complete boxes count" if reading.cut else ""
    detail = f"{len(found)} boxes, {len(compared.objects)} expected, {len(pairs)} matched{ignored}{cut}"
    return Verdict(components[params.score], components, [box.as_json() for box in found], detail)


def _categories(found: list[Region], truth: list[TrueObject]) -> tuple[list[int], list[int]]:
    """A number for each distinct label. A box without a label has the empty one."""
    numbers: dict[str, int] = {}

    def number(label: str | None) -> int:
        return numbers.setdefault((label or "").strip().casefold(), len(numbers))

    return [number(box.label) for box in found], [number(one.label) for one in truth]


def _coco_ap(compared: Compared, truth: list[TrueObject], match_labels: bool) -> tuple[float, float]:
    # Each of the IoU thresholds has boxes of its own within a crowd; where nothing is to be found there is no AP.
    rows = [row for row in range(len(compared.predicted)) if compared.objects or not compared.in_crowd[row]]
    found = [compared.reading.boxes[row] for row in rows]
    categories, true_categories = [compared.categories[row] for row in rows], compared.true_categories
    if not match_labels:
        categories, true_categories = [0] * len(rows), [0] * len(truth)
    return average_precision(
        Objects(compared.predicted[rows], categories, [1.0 if box.score is None else box.score for box in found]),
        Objects(compared.true, true_categories, [1.0] * len(truth), [bool(one.iscrowd) for one in truth]),
    )


def _components(compared: Compared, weights: Weights) -> dict[str, float]:
    overlaps, same_label, pairs = compared.overlaps, compared.same_label, compared.pairs
    num_predicted, num_true = int((~compared.in_crowd).sum()), len(compared.objects)
    num_matched = len(pairs)
    both_empty = num_predicted == num_true == 0
    terms = {
        "f1": 1.0 if both_empty else 2 * num_matched / (num_predicted + num_true),
        "mean_iou": float(both_empty) if num_true == 0 else sum(float(overlaps[pair]) for pair in pairs) / num_true,
        "label": float(both_empty) if num_true == 0 else sum(bool(same_label[pair]) for pair in pairs) / num_true,
        "missing": (num_true - num_matched) / max(num_true, 1),
        "redundant": (num_predicted - num_matched) / max(num_predicted, 1),
    }
    worth = terms | {name: 1 - terms[name] for name in ("missing", "redundant")}
    total = sum(weight for _, weight in weights)
    weighted = sum(weight * worth[name] for name, weight in weights) / total if num_matched or both_empty else 0.0
    counts = {"num_matched": num_matched, "num_predicted": num_predicted, "num_true": num_true}
    # Rounding of sums must not lift a perfect answer above 1.
    return {"weighted": min(weighted, 1.0), **terms, **{name: float(count) for name, count in counts.items()}}


DETECTION = Task(
    name="detection",
    summary="All boxes of the last <answer>...</answer>, or of the response, against the true objects; [] says none.",
    formula="Boxes are matched one to one for the largest total IoU among pairs with IoU >= `iou_threshold` and, with "
    "`match_labels`, equal labels. Of n predicted and m true boxes k are matched: f1 = 2k / (n + m). mean_iou = sum of "
    "the matched IoUs / m. label = matched pairs with equal labels / m. missing = (m - k) / m. redundant = (n - k) / "
    "n. weighted = mean of f1, mean_iou, label, 1 - missing, 1 - redundant, by `weights`; 0 when nothing is matched. "
    "coco_ap, coco_ap50: pycocotools' AP of this image, each score 1 unless the response has a `score` for the box. "
    "A true object with `iscrowd` 1 is a region, as in COCO: it is none of the m, and a box that is not matched and "
    "has at least `iou_threshold` of its own area in one (with `match_labels`, of its label) is none of the n. "
    "None predicted and none true: 1.",
    floor=0.0,
    solution=TypeAdapter(TrueObjects),
    params=DetectionParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="detection",
            response='<answer>[{"bbox_2d": [0, 0, 50, 100], "label": "Dog"}, '
            '{"bbox_2d": [300, 0, 350, 50], "label": "cat"}]</answer>',
            solution=[
                {"bbox_2d": [0, 0, 100, 100], "label": "dog"},
                {"bbox_2d": [200, 0, 250, 50], "label": "cat"},
            ],
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.375,
            components={
                "weighted": 0.375,
                "f1": 0.5,
                "mean_iou": 0.25,
                "label": 0.5,
                "missing": 0.5,
                "redundant": 0.5,
                "num_matched": 1.0,
                "num_predicted": 2.0,
                "num_true": 2.0,
            },
            parsed=[
                {"bbox_2d": [0.0, 0.0, 50.0, 100.0], "label": "Dog"},
                {"bbox_2d": [300.0, 0.0, 350.0, 50.0], "label": "cat"},
            ],
            detail="2 boxes, 2 expected, 1 matched",
        ),
    ),
)
