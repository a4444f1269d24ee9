"""The boxes of a detection's solution and of an answer to it, in pixels of the original image, as COCO's AP takes them.

The reward server has parsed the answer; what its numbers count stands in the params that it was scored with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mmr1.evaluation.answers import Answer
from mmr1.evaluation.coco import Box

_EXTENTS = {"normalized_1000": (1000, 1000), "normalized_1": (1, 1)}


def true_boxes(answer: Answer) -> list[Box]:
    """A solution: objects with a box under bbox_2d or bbox, crowds among them, or the JSON text of them."""
    solution = json.loads(answer.solution) if isinstance(answer.solution, str) else answer.solution
    factors = _to_pixels(answer, answer.params.get("solution_space"), None)
    return [_box(one, one.get("bbox_2d") or one["bbox"], factors) for one in solution]


def found_boxes(answer: Answer) -> list[Box]:
    """What was read out of an answer; nothing of one in which no box could be read."""
    if not answer.is_valid or not isinstance(answer.parsed, list):
        return []
    factors = _to_pixels(answer, answer.params.get("response_space"), answer.params.get("resized_size"))
    return [_box(one, one["bbox_2d"], factors) for one in answer.parsed if "bbox_2d" in one]


def _box(one: dict[str, Any], corners: Sequence[float], factors: tuple[float, float]) -> Box:
    x1, y1, x2, y2 = map(float, corners)
    label = str(one.get("label") or "").strip().casefold()  # labels are compared as the judge compares them
    score = one.get("score")
    in_pixels = (x1 * factors[0], y1 * factors[1], x2 * factors[0], y2 * factors[1])
    return Box(in_pixels, label, 1.0 if score is None else float(score), bool(one.get("iscrowd")))


def _to_pixels(answer: Answer, space: str | None, resized: Sequence[int] | None) -> tuple[float, float]:
    """Factors for x and y. Where there is nothing to convert, no image size is needed."""
    if space in (None, "absolute") and resized is None:
        return 1.0, 1.0
    if answer.image_size is None:
        raise ValueError(f"problem {answer.problem}: boxes in space {space} need the image's size")
    extent = _EXTENTS.get(space or "", resized or answer.image_size)
    return answer.image_size[0] / extent[0], answer.image_size[1] / extent[1]
