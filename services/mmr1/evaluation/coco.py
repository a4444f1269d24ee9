"""Detection: COCO's AP and AR through pycocotools, and the same again for resampled images.

The matching of boxes and the value itself are pycocotools' own. Its accumulation takes tens of milliseconds, so for a
thousand resamples it is done here, for all of them at once: an image that was drawn twice counts twice at its place.

Where all scores are equal, as of a model that states none, pycocotools would take the boxes in the order of the images,
and AP would be another with the rows in another order. There no threshold tells one box from the next, so a category's
curve has the one point that all its boxes have together: its precision there, up to its recall.

Knows no response and no label's meaning.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NAMES = ("ap", "ap50", "ap75", "ar")
_PLACES = (0, 1, 2, 8)  # of them in pycocotools' summary
_AT_ONCE = 2**22  # numbers of an array over resamples and detections
_AP50, _AP75 = 0, 5  # places among the IoU thresholds 0.50, 0.55 ... 0.95


@dataclass(frozen=True, slots=True)
class Box:
    """Corners in pixels of the original image. `score` orders what was found; a model that states none has 1.

    `is_crowd`: of a true one that it is a region in which what is found counts neither way, COCO's iscrowd.
    """

    corners: tuple[float, float, float, float]
    label: str
    score: float = 1.0
    is_crowd: bool = False


class CocoEvaluation:
    """One set of answers to the same images. Labels of what was found that no true box has cost nothing, as in COCO."""

    def __init__(self, true: Sequence[Sequence[Box]], found: Sequence[Sequence[Box]]) -> None:
        """`true` and `found` have one entry for each image, in the same order."""
        labels = sorted({box.label for boxes in true for box in boxes if not box.is_crowd})
        self._categories = {label: number for number, label in enumerate(labels, start=1)}
        self._num_images = len(true)
        self._has_one_score = len({box.score for boxes in found for box in boxes}) <= 1
        self._evaluation = self._evaluate(true, found) if self._categories else None

    def values(self) -> Floats:
        """AP, AP50, AP75 and AR of at most 100 boxes: [4], NaN without any true box."""
        if self._evaluation is None:
            return np.full(len(NAMES), np.nan)
        if self._has_one_score:
            (values,) = self._one_part(np.ones((1, self._num_images)))
            return np.array(values)
        self._evaluation.accumulate()
        self._evaluation.summarize()
        return np.array([self._evaluation.stats[place] for place in _PLACES], dtype=np.float64)

    def resampled(self, counts: Iterable[Floats]) -> Floats:
        """The same for each resample: [b, 4]. `counts` are as `resampling.drawn_counts` makes them."""
        parts = [self._one_part(part) for part in counts]
        return np.concatenate(parts) if parts else np.empty((0, len(NAMES)))

    def _evaluate(self, true: Sequence[Sequence[Box]], found: Sequence[Sequence[Box]]) -> Any:
        coco, cocoeval = _pycocotools()
        truth, results = coco.COCO(), coco.COCO()
        categories = [{"id": number, "name": label} for label, number in self._categories.items()]
        for target, boxes in ((truth, true), (results, found)):
            target.dataset = {
                "images": [{"id": image} for image in range(len(true))],
                "categories": categories,
                "annotations": self._annotations(boxes),
            }
            target.createIndex()
        evaluation = cocoeval.COCOeval(truth, results, "bbox")
        # Of its four area ranges, the one that these figures are of.
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        return evaluation

    def _annotations(self, boxes_of: Sequence[Sequence[Box]]) -> list[dict[str, Any]]:
        annotations: list[dict[str, Any]] = []
        for image, boxes in enumerate(boxes_of):
            for box in boxes:
                if box.label not in self._categories:
                    continue
                x1, y1, x2, y2 = box.corners
                width, height = max(0.0, x2 - x1), max(0.0, y2 - y1)  # an inverted one is found nowhere
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # pycocotools takes the id 0 for "not matched"
                        "image_id": image,
                        "category_id": self._categories[box.label],
                        "bbox": [x1, y1, width, height],
                        "area": width * height,
                        "score": box.score,
                        "iscrowd": int(box.is_crowd),
                    }
                )
        return annotations

    def _one_part(self, counts: Floats) -> Floats:
        """AP, AP50, AP75, AR for `counts` [b, images]."""
        if self._evaluation is None:
            return np.full((len(counts), len(NAMES)), np.nan)
        params = self._evaluation.params
        shape = (len(self._categories), len(counts), len(params.iouThrs))
        precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
        for place in range(len(self._categories)):
            start = place * self._num_images
            of_images = self._evaluation.evalImgs[start : start + self._num_images]  # None: no box of this category
            precision[place], recall[place] = _of_category(of_images, counts, params, self._has_one_score)
        return np.stack(
            [
                _mean(precision, axis=(0, 2)),
                _mean(precision[..., _AP50], axis=0),
                _mean(precision[..., _AP75], axis=0),
                _mean(recall, axis=(0, 2)),
            ],
            axis=1,
        )


def _of_category(of_images: Sequence[Any], counts: Floats, params: Any, has_one_score: bool) -> tuple[Floats, Floats]:
    """Mean precision over COCO's 101 recalls, and the recall: [b, T] each, NaN where a resample has no true box."""
    limit = params.maxDets[-1]
    present = [(image, found) for image, found in enumerate(of_images) if found is not None]
    num_true = sum(
        (counts[:, image] * np.count_nonzero(np.asarray(found["gtIgnore"]) == 0) for image, found in present),
        start=np.zeros(len(counts)),
    )
    scores = np.concatenate([np.asarray(found["dtScores"][:limit], dtype=np.float64) for _, found in present])
    order = np.argsort(-scores, kind="mergesort")  # of equal scores the earlier image's come first, as in pycocotools
    owner = np.repeat([image for image, _ in present], [len(found["dtScores"][:limit]) for _, found in present])[order]
    ignored = np.concatenate([found["dtIgnore"][:, :limit] for _, found in present], axis=1)[:, order] != 0
    matched = np.concatenate([found["dtMatches"][:, :limit] for _, found in present], axis=1)[:, order] != 0
    shape = (len(counts), len(params.iouThrs))
    precision, recall = np.zeros(shape), np.zeros(shape)
    at_once = max(1, _AT_ONCE // max(1, len(owner)))
    for start in range(0, len(counts) if len(owner) else 0, at_once):
        rows = slice(start, start + at_once)
        times = counts[rows][:, owner]  # [b, detections]
        for place in range(len(params.iouThrs)):
            right = times * (matched[place] & ~ignored[place])
            wrong = times * (~matched[place] & ~ignored[place])
            if has_one_score:
                right, wrong = right.sum(axis=1, keepdims=True), wrong.sum(axis=1, keepdims=True)
            precision[rows, place], recall[rows, place] = _of_threshold(
                right, wrong, num_true[rows, None], params.recThrs
            )
    undefined = num_true == 0
    precision[undefined], recall[undefined] = np.nan, np.nan
    return precision, recall


def _of_threshold(right: Floats, wrong: Floats, num_true: Floats, recalls: Floats) -> tuple[Floats, Floats]:
    """Of each resample, how often each detection is right or wrong: [b, detections]; `num_true` is [b, 1]. [b] each."""
    right, wrong = np.cumsum(right, axis=1), np.cumsum(wrong, axis=1)
    found_share = np.divide(right, num_true, out=np.zeros_like(right), where=num_true > 0)
    best = np.maximum.accumulate((right / (right + wrong + np.spacing(1)))[:, ::-1], axis=1)[:, ::-1]
    # How many of the 101 recalls each detection is the first to reach, times the precision there.
    reached = np.searchsorted(recalls, found_share, side="right")
    precision: Floats = (best * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(recalls)
    return precision, found_share[:, -1]


def _mean(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """The mean of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    number = defined.sum(axis=axis)
    total: Floats = np.where(defined, values, 0.0).sum(axis=axis)
    means: Floats = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
    return means


@cache
def _pycocotools() -> tuple[ModuleType, ModuleType]:
    modules = importlib.import_module("pycocotools.coco"), importlib.import_module("pycocotools.cocoeval")
    for module in modules:
        vars(module)["print"] = _print_nothing  # they print their progress
    return modules


def _print_nothing(*_: object) -> None:
    return None
