"""Boxes and points to draw on an image: what was true and what was read out of a response, in the image's own pixels.

It converts by what the run declared of its coordinates, as the reward server does, and guesses nothing from numbers:
what cannot be converted is not there. It draws nothing itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_BOXES = 60  # of one response, or of one solution
BOX_TASKS = ("grounding", "detection")  # whose solution may be four bare numbers

Size = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A box in pixels, its upper left corner first; a point is a box without extent.

    `place` is its own, from 0, in the list that it comes from: others of that list may not be there.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    place: int = field(default=0, compare=False)
    is_crowd: bool = False  # a true region in which what is found counts neither way; its label says so

    @property
    def is_point(self) -> bool:
        return self.x1 == self.x2 and self.y1 == self.y2


def predicted(parsed: object, coordinates: object, task: str, size: Size | None) -> list[Box]:
    """What a response's answer was read as. The reward that is named as the task comes first.

    Args:
        parsed: what each reward read, by name.
        coordinates: of each reward, the params that say what a coordinate counts.
        size: width and height of the original image.
    """
    if not isinstance(parsed, Mapping):
        return []
    for name in sorted(parsed, key=lambda name: (_task_of(name) != task, name)):
        factors = _factors(_params(coordinates, _task_of(name)), "response_space", size)
        boxes = _boxes(parsed[name], factors, bare=False) if factors else []
        if boxes:
            return boxes
    return []


def true(solution: object, coordinates: object, task: str, size: Size | None) -> list[Box]:
    """A solution's boxes; none when it has no form of theirs."""
    spaces = [_params(coordinates, task), *(coordinates.values() if isinstance(coordinates, Mapping) else ())]
    params = next((one for one in spaces if isinstance(one, Mapping) and "solution_space" in one), {})
    factors = _factors(params, "solution_space", size)
    if isinstance(solution, str):
        try:
            solution = json.loads(solution)
        except (ValueError, RecursionError):
            return []
    return _boxes(solution, factors, bare=task in BOX_TASKS) if factors else []


def _task_of(name: str) -> str:
    """A reward's task: one that a run uses twice is called detection-1 and detection-2."""
    head, _, tail = str(name).rpartition("-")
    return head if head and tail.isdigit() else str(name)


def _params(coordinates: object, task: str) -> Mapping[str, Any]:
    params = coordinates.get(task) if isinstance(coordinates, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def _factors(params: Mapping[str, Any], key: str, size: Size | None) -> Size | None:
    """What brings a coordinate of the declared space to pixels of the original; None when that cannot be told."""
    space = params.get(key, "absolute")
    seen = params.get("resized_size") if key == "response_space" else None
    extents = {"normalized_1": (1.0, 1.0), "normalized_1000": (1000.0, 1000.0), "absolute": _size(seen) or size}
    if space == "absolute" and seen is None:
        return 1.0, 1.0
    extent = extents.get(space) if isinstance(space, str) else None
    return (size[0] / extent[0], size[1] / extent[1]) if size and extent else None


def _size(value: object) -> Size | None:
    numbers = _numbers(value)
    return (numbers[0], numbers[1]) if len(numbers) == 2 and min(numbers) > 0 else None


def _boxes(value: object, factors: Size, bare: bool) -> list[Box]:
    found = []
    for place, numbers, label, is_crowd in _regions(value, bare):
        x, y = factors
        x1, y1, x2, y2 = numbers if len(numbers) == 4 else numbers * 2
        xs, ys = sorted((x1 * x, x2 * x)), sorted((y1 * y, y2 * y))
        text = f"{label} (crowd)".strip() if is_crowd else label
        found.append(Box(xs[0], ys[0], xs[1], ys[1], text, place, is_crowd))
        if len(found) == MAX_BOXES:
            break
    return found


def _regions(value: object, bare: bool) -> Iterator[tuple[int, list[float], str, bool]]:
    """Places, coordinates, labels and whether each is a crowd.

    Of objects with a box or a point, and with `bare` of lists of four numbers.
    """
    if bare and len(numbers := _numbers(value)) == 4:
        yield 0, numbers, "", False
        return
    for place, one in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(one, Mapping):
            numbers = next((n for key in ("bbox_2d", "bbox", "point_2d") if (n := _numbers(one.get(key)))), [])
            label = one.get("label")
            text = "" if label is None else str(label)[:80]
        else:
            numbers, text = (_numbers(one) if bare else []), ""
        if len(numbers) in (2, 4):
            yield place, numbers, text, isinstance(one, Mapping) and bool(one.get("iscrowd"))


def _numbers(value: object) -> list[float]:
    """A list's numbers; none when one of them is no finite number."""
    if not isinstance(value, list | tuple):
        return []
    numbers = [float(n) for n in value if isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e9]
    return numbers if len(numbers) == len(value) and all(map(math.isfinite, numbers)) else []


__all__ = ["BOX_TASKS", "MAX_BOXES", "Box", "predicted", "true"]
