"""COCO's average precision of one image, as pycocotools computes it. Knows no response, no label's spelling, no reward.

pycocotools comes with the extra `coco` and is imported at the first use.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from .boxes import Floats, proper
from .registry import BadItem

_MAX_DETECTIONS = 100
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Objects:
    """Boxes (N, 4) as corners, with the category and the score of each, and of true ones whether it is a crowd."""

    boxes: Floats
    categories: Sequence[int]
    scores: Sequence[float]
    are_crowds: Sequence[bool] | None = None  # None: none is


def average_precision(predicted: Objects, true: Objects) -> tuple[float, float]:
    """(AP over the IoU thresholds 0.50, 0.55 ... 0.95; AP at 0.50), each the mean over the categories of the truth.

    As in COCO, predictions of a category that the truth lacks cost nothing, nor do those within a crowd, which is no
    object that could be missed; and of equal scores the first counts as the higher. Unlike COCO, objects of every size
    count, and all predictions: its limit of 100 would keep a perfect answer to a crowded image below 1. Both empty: 1.
    One of them empty: 0. Raises BadItem without pycocotools.
    """
    coco, cocoeval = _pycocotools()
    crowds = true.are_crowds or [False] * len(true.categories)
    known = {category for category, is_crowd in zip(true.categories, crowds, strict=True) if not is_crowd}
    if not known:
        ap = 0.0 if predicted.categories else 1.0
        return ap, ap
    found = [
        _annotation(box, category) | {"score": score}
        for box, category, score in zip(
            _corner_and_size(predicted.boxes), predicted.categories, predicted.scores, strict=True
        )
        if category in known
    ]
    if not found:
        return 0.0, 0.0
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": 1}],
        "categories": [{"id": category} for category in sorted(known)],
        # From 1 on: pycocotools takes the id 0 for "not matched".
        "annotations": [
            _annotation(box, category) | {"id": number, "area": box[2] * box[3], "iscrowd": int(is_crowd)}
            for number, (box, category, is_crowd) in enumerate(
                zip(_corner_and_size(true.boxes), true.categories, crowds, strict=True), start=1
            )
            if category in known
        ],
    }
    truth.createIndex()
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, math.inf]], ["all"]
    evaluation.params.maxDets = [max(_MAX_DETECTIONS, len(found))]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]  # thresholds, recalls, categories, area ranges, limits of detections
    # pycocotools adds a hair to each denominator, which would leave a perfect answer that much below 1.
    return round(float(precision.mean()), _DIGITS), round(float(precision[0].mean()), _DIGITS)


def _corner_and_size(boxes: Floats) -> list[list[float]]:
    """x, y, width, height; what is no box becomes an empty one, which is never found and still counts as predicted."""
    real = np.where(proper(boxes)[:, None], boxes, 0.0)
    rows: list[list[float]] = np.hstack([real[:, :2], real[:, 2:] - real[:, :2]]).tolist()
    return rows


def _annotation(box: list[float], category: int) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "bbox": box}


@functools.cache
def _pycocotools() -> tuple[ModuleType, ModuleType]:
    try:
        modules = importlib.import_module("pycocotools.coco"), importlib.import_module("pycocotools.cocoeval")
    except ImportError as error:
        raise BadItem(
            f"COCO's AP needs pycocotools ({error}): pip install 'mmr1-reward-server[coco]' where the server runs"
        ) from None
    for module in modules:
        # They print their progress. Redirecting standard output would redirect that of other threads too.
        vars(module)["print"] = _print_nothing
    return modules


def _print_nothing(*_: object) -> None:
    return None
