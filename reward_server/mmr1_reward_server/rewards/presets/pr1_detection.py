"""pr1_detection: detection as Perception-R1 rewards it (linkangheng/PR1, as philipmit/PR1@accb7cb holds it).

The response is a JSON list of {"bbox_2d", "label"}, labels those of COCO, boxes in the solution's pixels. Where the
original is wrong, and bug_compatible gives what it gave:
- It compares classes counted from 1 with classes counted from 0 when it matches, so of two boxes at one place the one
  labelled with the class before the true one is preferred. Right: the one with the true class.
- One "toothbrush" (class 90, one more than its array holds), one inverted box or one that is not four numbers takes
  the whole response to 0. Right: toothbrushes are found as all others are, and such a box is an invalid item.
- An empty list is 0 even when there is nothing to find. Right: the largest value there is.
- With IS_SIZE_WEIGHT it divides the weighted IoU by the plain sum of the IoU times their number, so that one large box
  always gets 1, and n of them 1/n. Right: a weighted mean.
Kept as published: the costs of the matching, with L1 in pixels; pairs are dropped after it, not before; boxes where
there is nothing to find keep their 0.25 for the format.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, TypeAdapter, model_validator

from ...api import Example, Item, Outcome, Result
from ...box_parsing import MAX_REGIONS
from ...boxes import Bools, Floats, as_boxes, pairwise_giou, pairwise_iou, proper
from ...coordinates import MAX_OBJECTS
from ...matching import Pairs, assign
from ...registry import InvalidOutput, Sample, Task, Verdict
from .reading import PresetParams, as_coordinates, as_true_box, or_as_text, read_json, read_true_json

# COCO's 80 classes in the order of their numbers, which leave ten of 1 to 90 out.
_NAMES: Final = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
_LEFT_OUT = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
_NUM_CLASSES = 90
COCO_CLASSES: Final = dict(
    zip(_NAMES.split(","), (number for number in range(1, _NUM_CLASSES + 1) if number not in _LEFT_OUT), strict=True)
)
_TOOTHBRUSH = COCO_CLASSES["toothbrush"]

_MIN_IOU = 0.5
_FORMAT_WEIGHT = 0.25
_PENALTY_WEIGHT = 0.5
_MAX_REWARD = 3.0
_SMALL, _MEDIUM = 32.0**2, 96.0**2  # areas in pixels, as COCO has them
_MAX_DISTANCE = 1e30  # five times as much is still finite in single precision
# What softmax makes of a one-hot vector over all classes: at the class itself, and elsewhere.
_PROBABILITY = math.e / (math.e + _NUM_CLASSES - 1)
_OTHER_PROBABILITY = 1 / (math.e + _NUM_CLASSES - 1)


class DetectionParams(PresetParams):
    """Under the names of the environment variables that the original reads."""

    f1_scale: float = Field(0.75, ge=0, le=100, description="weight of F1")
    cls_coe: float = Field(1.0, ge=0, le=100, description="weight of the share of matched boxes with the right label")
    iou_coe: float = Field(1.0, ge=0, le=100, description="weight of the matched boxes' mean IoU")
    is_size_weight: bool = Field(
        False, description="whether the IoU of smaller true boxes counts more: see the summary"
    )
    coverage_scale: float = Field(0.0, ge=0, le=100, description="weight of the true classes' coverage")
    do_penalty: bool = Field(True, description="whether surplus and missing boxes cost; the released script says false")


class Truth(BaseModel):
    """The dataset's `solution`: COCO's number of each object's class, and its box in pixels."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    target_id: list[Annotated[int, Field(ge=1, le=_NUM_CLASSES)]] = Field(max_length=MAX_OBJECTS)
    target_box: list[tuple[float, float, float, float]] = Field(max_length=MAX_OBJECTS)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.target_id) != len(self.target_box):
            raise ValueError(f"{len(self.target_id)} target_id, but {len(self.target_box)} target_box")
        for box in self.target_box:
            as_true_box(list(box))
        return self


def read_items(text: str) -> list[JsonValue]:
    """The response's list. Raises InvalidOutput."""
    try:
        items = read_json(text.replace("```json", "").replace("```", ""))
    except ValueError:
        raise InvalidOutput("the response is no JSON list, in fences or not") from None
    if not isinstance(items, list):
        raise InvalidOutput("the response is JSON, but not a list")
    if len(items) > MAX_REGIONS:
        raise InvalidOutput(f"more than {MAX_REGIONS} boxes")
    return items


def read_item(item: JsonValue) -> tuple[int, list[float] | None] | None:
    """(Class, box) of an item with a known label and a bbox_2d, which may be anything: None unless four numbers."""
    if not isinstance(item, dict) or "bbox_2d" not in item:
        return None
    label = item.get("label")
    number = COCO_CLASSES.get(label) if isinstance(label, str) else None
    numbers = as_coordinates(item["bbox_2d"])
    return None if number is None else (number, numbers if numbers and len(numbers) == 4 else None)


def match(boxes: Floats, true_boxes: Floats, same_class: Bools) -> tuple[Pairs, Floats]:
    """The pairs with the smallest total cost that overlap by more than 0.5, and the IoU of each.

    The cost (after DETR): 5 L1(centre and size) - probability of the class - 2 GIoU. (N, 4), (M, 4), (N, M).
    In single precision, as published: where two true boxes are the same, rounding decides.
    """
    differences = np.abs(_centre_and_size(boxes)[:, None] - _centre_and_size(true_boxes)[None])
    l1 = np.minimum(differences.sum(axis=2), _MAX_DISTANCE)
    probability = np.where(same_class, _PROBABILITY, _OTHER_PROBABILITY)
    giou = pairwise_giou(boxes, true_boxes)
    cost = 5 * l1.astype(np.float32) - probability.astype(np.float32) - 2 * giou.astype(np.float32)
    rows, columns = assign(cost)
    overlaps = pairwise_iou(boxes, true_boxes)[rows, columns]
    kept = overlaps > _MIN_IOU
    return list(zip(rows[kept].tolist(), columns[kept].tolist(), strict=True)), overlaps[kept]


def score(sample: Sample[Truth, DetectionParams]) -> Verdict:
    params, truth = sample.params, sample.solution
    items = read_items(sample.response)
    found = [read for item in items if (read := read_item(item)) is not None]
    if not params.bug_compatible:
        found = [(number, box) for number, box in found if _is_proper(box)]
    classes = [number for number, _ in found]
    boxes = [box for _, box in found if box is not None]
    if len(boxes) < len(found):
        return Verdict(0.0, {}, None, "a box is not four numbers, which takes all to 0 in the original")
    parsed: JsonValue = [
        {"bbox_2d": list(box), "label": number}
        for number, box in zip(classes, boxes, strict=True)
        if all(math.isfinite(coordinate) for coordinate in box)
    ]
    if not items:
        reward = min(_FORMAT_WEIGHT + params.f1_scale + params.cls_coe + params.iou_coe, _MAX_REWARD)
        right = not truth.target_id and not params.bug_compatible
        return Verdict(reward if right else 0.0, {"format": float(right)}, parsed, f"0 of {len(truth.target_id)} found")
    if not boxes:
        raise InvalidOutput("no item has a bbox_2d of four numbers and one of COCO's labels")
    layout = len(boxes) / len(items)
    if params.bug_compatible and truth.target_id and not _survives(classes, boxes):
        return Verdict(0.0, {}, None, "a toothbrush or an inverted box, which takes all to 0 in the original")
    return _weighted(layout, classes, boxes, truth, params, parsed)


def _weighted(
    layout: float,
    classes: list[int],
    boxes: list[list[float]],
    truth: Truth,
    params: DetectionParams,
    parsed: JsonValue,
) -> Verdict:
    """The reward of at least one valid item."""
    n, m = len(boxes), len(truth.target_box)
    true_classes = np.asarray(truth.target_id, dtype=np.int64) - (1 if params.bug_compatible else 0)
    same_class = np.asarray(classes)[:, None] == true_classes[None]
    pairs, overlaps = match(as_boxes(boxes), as_boxes(truth.target_box), same_class) if m else ([], np.zeros(0))
    detail = f"{len(pairs)} of {m} found with {n} boxes"
    if not pairs:
        return Verdict(_FORMAT_WEIGHT * layout, {"format": layout}, parsed, detail)
    true = as_boxes([truth.target_box[column] for _, column in pairs])
    components = {
        "format": layout,
        "f1": 2 * len(pairs) / (n + m),
        "label": sum(classes[row] == truth.target_id[column] for row, column in pairs) / len(pairs),
        "iou": _by_size(overlaps, true, params) if params.is_size_weight else float(overlaps.mean()),
        "redundant": (n - len(pairs)) / n,
        "missing": (m - len(pairs)) / m,
        "coverage": _coverage(classes, truth.target_id),
    }
    reward = _FORMAT_WEIGHT * layout + params.f1_scale * components["f1"]
    reward += params.cls_coe * components["label"] + params.iou_coe * components["iou"]
    if params.do_penalty:
        reward -= _PENALTY_WEIGHT * (components["redundant"] + components["missing"])
    reward = min(max(reward, 0.0), _MAX_REWARD) + params.coverage_scale * components["coverage"]
    return Verdict(reward, components, parsed, detail)


def _by_size(overlaps: Floats, true: Floats, params: DetectionParams) -> float:
    """The mean IoU with the weights of the true boxes' areas; as published it is not divided by their sum."""
    areas = (true[:, 2] - true[:, 0]) * (true[:, 3] - true[:, 1])
    weights = np.select([areas < _SMALL, areas < _MEDIUM], [3.0, 2.0], 1.0)
    divisor = overlaps.sum() * len(overlaps) + 1e-8 if params.bug_compatible else weights.sum()
    return float((weights * overlaps).sum() / divisor)


def _coverage(classes: list[int], true_classes: list[int]) -> float:
    """The mean over the true classes of min(predicted / true, 1)."""
    each = set(true_classes)
    return sum(min(classes.count(number) / true_classes.count(number), 1.0) for number in each) / len(each)


def _centre_and_size(boxes: Floats) -> Floats:
    return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)


def _is_proper(box: list[float] | None) -> bool:
    return box is not None and bool(proper(as_boxes([box]))[0])


def _survives(classes: list[int], boxes: list[list[float]]) -> bool:
    """Whether the original gets past its one-hot array and its assertions."""
    return _TOOTHBRUSH not in classes and bool(proper(as_boxes(boxes)).all())


def _read_truth(solution: object) -> Any:
    return read_true_json(solution, '{"target_id": [18], "target_box": [[10, 10, 110, 60]]}')


PR1_DETECTION = Task(
    name="pr1_detection",
    summary='Detection as Perception-R1 rewards it: a JSON list of {"bbox_2d", "label"} with COCO\'s labels against '
    '{"target_id", "target_box"} (or its JSON text). bug_compatible: classes are off by one when matching; one '
    "toothbrush, inverted box or box without four numbers takes all to 0; nothing found where nothing is gives 0; with "
    "is_size_weight, IoU is sum(weight * IoU) / (n * sum(IoU)).",
    formula="clamp(0.25 format + f1_scale F1 + cls_coe label + iou_coe IoU - 0.5 (redundant / n + missing / m), 0, 3) "
    "+ coverage_scale coverage. Hungarian matching, kept above IoU 0.5; label and IoU are means over what is matched "
    "(is_size_weight: IoU with weight 3 for true boxes below 32 * 32 pixels, 2 below 96 * 96, else 1), "
    "format the share of valid items. Nothing matched: 0.25 format. No boxes and none there: the largest value.",
    floor=0.0,
    solution=TypeAdapter(Annotated[Truth, BeforeValidator(_read_truth), or_as_text(Truth.model_json_schema())]),
    params=DetectionParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="pr1_detection",
            response='```json\n[{"bbox_2d": [10, 10, 110, 60], "label": "dog"}]\n```',
            solution={"target_id": [18, 1], "target_box": [[10, 10, 110, 70], [200, 0, 300, 50]]},
            params={"do_penalty": False},
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.25 + 0.75 * 2 / 3 + 1 + 5 / 6,
            components={
                "format": 1.0,
                "f1": 2 / 3,
                "label": 1.0,
                "iou": 5 / 6,
                "redundant": 0.0,
                "missing": 0.5,
                "coverage": 0.5,
            },
            parsed=[{"bbox_2d": [10.0, 10.0, 110.0, 60.0], "label": 18}],
            detail="1 of 2 found with 1 boxes",
        ),
    ),
)
