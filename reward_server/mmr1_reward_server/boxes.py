"""The geometry of boxes: areas, centres, IoU and GIoU, one pair at a time or all pairs at once.

A box is (x1, y1, x2, y2): its upper left and lower right corner, in any one unit, on a continuous plane (no pixel is
added: the box 0, 0, 1, 1 has area 1). Many boxes are an array of shape (N, 4). What is no ordinary box has a result
too:

| box | area | IoU with any box | GIoU with any box |
|---|---|---|---|
| inverted (x2 < x1 or y2 < y1) | 0 | 0 | -1 |
| with NaN, or beyond +-MAX_COORDINATE (so also infinite) | 0 | 0 | -1 |
| empty (x2 = x1 or y2 = y1) | 0 | 0, with itself too | by the formula; -1 if both lie on one line |
| with negative coordinates | as any other | as any other: boxes are never clipped | as any other |
| duplicate | as any other | as any other: each counts by itself | as any other |

Inverted corners are not put in order: a model that swaps them has not learned what they mean.

This file knows no image, no label, no response and no reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Far beyond every image, and small enough that no area overflows.
MAX_COORDINATE = 1e100
# Converting between coordinate spaces may leave an overlap this much below its exact value.
_ROUNDING = 1e-9


def as_boxes(boxes: Sequence[Sequence[float]] | Floats) -> Floats:
    """An array of shape (N, 4), for no boxes too. Raises ValueError when the rows do not have four numbers."""
    array = np.asarray(boxes, dtype=np.float64)
    return array.reshape(0, 4) if array.size == 0 else array.reshape(len(array), 4)


def proper(boxes: Floats) -> Bools:
    """(N, 4) -> (N,): which of them are boxes at all, empty ones included (first two rows of the table: not)."""
    in_order = (boxes[:, 0] <= boxes[:, 2]) & (boxes[:, 1] <= boxes[:, 3])  # False for NaN
    return in_order & (np.abs(boxes) <= MAX_COORDINATE).all(axis=1)


def areas(boxes: Floats) -> Floats:
    """(N, 4) -> (N,)."""
    return _areas(_without_improper(boxes))


def centres(boxes: Floats) -> Floats:
    """(N, 4) -> (N, 2): x, y. Inverted boxes have one too; NaN stays NaN."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def pairwise_iou(first: Floats, second: Floats) -> Floats:
    """(N, 4), (M, 4) -> (N, M): area of the intersection over area of the union, within [0, 1]."""
    return _overlap(_without_improper(first), _without_improper(second))[0]


def pairwise_coverage(first: Floats, second: Floats) -> Floats:
    """(N, 4), (M, 4) -> (N, M): area of the intersection over area of the first; 0 for one without an area."""
    a, b = _without_improper(first), _without_improper(second)
    area = np.broadcast_to(_areas(a)[:, None], (len(a), len(b)))
    ratio: Floats = np.divide(_intersection(a, b), area, out=np.zeros_like(area), where=area > 0)
    return np.minimum(ratio, 1.0)


def pairwise_giou(first: Floats, second: Floats) -> Floats:
    """(N, 4), (M, 4) -> (N, M): IoU - (hull - union) / hull, within [-1, IoU].

    The hull is the smallest box around both (Rezatofighi et al., Generalized Intersection over Union, CVPR 2019).
    """
    a, b = _without_improper(first), _without_improper(second)
    iou, union = _overlap(a, b)
    width = np.maximum(a[:, None, 2], b[None, :, 2]) - np.minimum(a[:, None, 0], b[None, :, 0])
    height = np.maximum(a[:, None, 3], b[None, :, 3]) - np.minimum(a[:, None, 1], b[None, :, 1])
    hull = width * height
    outside = np.divide(np.maximum(hull - union, 0.0), hull, out=np.ones_like(hull), where=hull > 0)
    giou = np.maximum(iou - outside, -1.0)
    return np.where(proper(first)[:, None] & proper(second)[None, :], giou, -1.0)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """As pairwise_iou, for one pair, without an array's cost."""
    if not (_is_proper(first) and _is_proper(second)):
        return 0.0
    return _overlap_of_two(first, second)[0]


def giou(first: Sequence[float], second: Sequence[float]) -> float:
    """As pairwise_giou, for one pair, without an array's cost."""
    if not (_is_proper(first) and _is_proper(second)):
        return -1.0
    overlap, union = _overlap_of_two(first, second)
    width = max(first[2], second[2]) - min(first[0], second[0])
    height = max(first[3], second[3]) - min(first[1], second[1])
    hull = width * height
    outside = max(hull - union, 0.0) / hull if hull > 0 else 1.0
    return max(overlap - outside, -1.0)


def reaches(overlap: float, minimum: float) -> bool:
    """Whether there is an overlap, and it is at least `minimum`, rounding aside."""
    return overlap > 0 and overlap >= minimum - _ROUNDING


def reaching(overlaps: Floats, minimum: float) -> Bools:
    """As `reaches`, for each of an array."""
    return (overlaps > 0) & (overlaps >= minimum - _ROUNDING)


def _without_improper(boxes: Floats) -> Floats:
    """What is no box becomes an empty one: its area and every intersection with it are then 0 by themselves."""
    return np.where(proper(boxes)[:, None], boxes, 0.0)


def _areas(boxes: Floats) -> Floats:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersection(a: Floats, b: Floats) -> Floats:
    """(N, M), its area, of proper boxes."""
    width = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    height = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    area: Floats = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    return area


def _overlap(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """(IoU, area of the union), each (N, M), of proper boxes."""
    intersection = _intersection(a, b)
    union = _areas(a)[:, None] + _areas(b)[None, :] - intersection
    ratio = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return np.minimum(ratio, 1.0), union


def _is_proper(box: Sequence[float]) -> bool:
    x1, y1, x2, y2 = box
    return x1 <= x2 and y1 <= y2 and all(math.fabs(value) <= MAX_COORDINATE for value in box)


def _overlap_of_two(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """(IoU, area of the union) of two proper boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return (min(intersection / union, 1.0) if union > 0 else 0.0), union
