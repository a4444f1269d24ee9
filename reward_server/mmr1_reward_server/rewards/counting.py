"""counting: how many? Compares the number in the response with the true one, or the places it gives with the true ones.

How places are matched is decided in `matching`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema

from ..api import Example, Item, Outcome, Result
from ..box_parsing import Region, read_regions
from ..coordinates import (
    BOX_SCHEMA,
    MAX_OBJECTS,
    POINT_SCHEMA,
    CoordinateParams,
    PointTuple,
    check_number,
    check_within_image,
    from_text,
    read_true_point,
    to_pixels,
)
from ..matching import match_points
from ..parsing import MAX_DIGITS, find_answer, find_boxed, find_numbers, read_number
from ..registry import BadItem, InvalidOutput, Sample, Task, Verdict

Truth = int | list[PointTuple]


def _read_truth(solution: object) -> Truth:
    """A count, or places as points; a list may be JSON text. Raises ValueError in words for the dataset's author."""
    if isinstance(solution, str) and solution.lstrip().startswith("["):
        solution = from_text(solution)
    if isinstance(solution, list):
        check_number(solution)
        return [_read_place(place, index) for index, place in enumerate(solution)]
    return _read_count(solution)


def _read_count(solution: object) -> int:
    """An integer from 0 on, or a text that is one. Raises ValueError."""
    value = read_number(solution) if isinstance(solution, str) else solution
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) >= 10**MAX_DIGITS:
        raise ValueError(
            "must be a count: an integer, or a text that is one, such as 3 or '3'; or, for score matching, a list of "
            "points or boxes"
        )
    if value < 0 or value != int(value):
        raise ValueError("must be a whole number, and not negative")
    return int(value)


def _read_place(place: object, index: int) -> PointTuple:
    try:
        return read_true_point(place)
    except ValueError as error:
        raise ValueError(f"must be a count or a list of places; number {index} of the list {error}") from None


CountOrPlaces = Annotated[
    Truth,
    BeforeValidator(_read_truth),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"anyOf": [POINT_SCHEMA, BOX_SCHEMA]}, "maxItems": MAX_OBJECTS},
            ]
        }
    ),
]


class CountingParams(CoordinateParams):
    score: Literal["exact", "graded", "matching"] = Field(
        "exact",
        description="1 or 0; or one minus the relative error; or how well the places that the response gives match the "
        "true ones, which takes a list as solution and image_size. Spaces are for matching only",
    )


def read_prediction(response: str) -> float:
    """The count that a response states. Raises InvalidOutput when it states none, or several within its answer tags."""
    answer = find_answer(response)
    boxed = find_boxed(answer.text)
    numbers = find_numbers(answer.text if boxed is None else boxed, prose=not answer.tagged)
    where = "between the answer tags" if answer.tagged else "in the response"
    if not numbers:
        raise InvalidOutput(f"no number {where}")
    # Free text counts aloud ("3 here, 2 there, so 5") and ends with its result; tags are there to hold one result only.
    if answer.tagged and len(set(numbers)) > 1:
        raise InvalidOutput(f"{len(numbers)} different numbers {where}, where one is expected")
    return numbers[-1]


def read_places(response: str) -> list[Region]:
    """The points and boxes of a response. Raises InvalidOutput when it neither gives one nor says there are none."""
    answer = find_answer(response)
    reading = read_regions(answer.text, pairs="points")
    if not reading.regions and not reading.says_none:
        where = "between the answer tags" if answer.tagged else "in the response"
        raise InvalidOutput(f"no complete point or box {where}: an empty list [] would say that there are none")
    return reading.regions


def score(sample: Sample[Truth, CountingParams]) -> Verdict:
    true, kind = sample.solution, sample.params.score
    if kind == "matching":
        if isinstance(true, int):
            raise BadItem("score matching compares places: send a list of points or boxes as solution, or score exact")
        return _score_places(sample, true)
    if not isinstance(true, int):
        raise BadItem(f"score {kind} compares counts: send a count as solution, or score matching for a list")
    predicted = read_prediction(sample.response)
    components = {
        "exact": 1.0 if predicted == true else 0.0,
        "graded": max(0.0, 1.0 - abs(predicted - true) / max(true, 1)),
    }
    shown = int(predicted) if predicted == int(predicted) else predicted
    return Verdict(components[kind], components, {"count": shown}, f"read {shown}, expected {true}")


def _score_places(sample: Sample[Truth, CountingParams], truth: list[PointTuple]) -> Verdict:
    check_within_image((value for place in truth for value in place), sample.params, sample.image_size)
    pixels = to_pixels(sample.params, sample.image_size)
    regions = read_places(sample.response)
    predicted = np.array([region.centre for region in regions]).reshape(-1, 2) * np.array(pixels.of_response)
    true = np.array(truth, dtype=np.float64).reshape(-1, 2) * np.array(pixels.of_solution)
    distances = match_points(predicted, true)[1]
    larger = max(len(predicted), len(true))
    count_ratio = min(len(predicted), len(true)) / larger if larger else 1.0
    mean_distance = float(distances.mean()) if len(distances) else 0.0
    closeness = max(0.0, 1.0 - mean_distance / pixels.diagonal)
    components = {
        "matching": count_ratio * closeness,
        "count_ratio": count_ratio,
        "mean_distance": mean_distance,
        "num_predicted": float(len(predicted)),
        "num_true": float(len(true)),
    }
    detail = f"{len(predicted)} places, {len(true)} expected, {mean_distance:.3g} pixels apart on average"
    return Verdict(components["matching"], components, [region.as_json() for region in regions], detail)


COUNTING = Task(
    name="counting",
    summary="The number in the last <answer>...</answer>, or the last one of the response, of either what is in a "
    "\\boxed, against the true count; or the points and boxes there against the true ones.",
    formula="exact: 1 if predicted = true else 0. graded: max(0, 1 - |predicted - true| / max(true, 1)). matching, of "
    "n predicted and m true points (of boxes, the centres), min(n, m) of them matched for the least total distance: "
    "min(n, m) / max(n, m) * max(0, 1 - mean distance / image diagonal), in pixels; 1 if n = m = 0 (Perception-R1).",
    floor=0.0,
    solution=TypeAdapter(CountOrPlaces),
    params=CountingParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="counting",
            response="<answer>3</answer>",
            solution="4",
            params={"score": "graded"},
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.75,
            components={"exact": 0.0, "graded": 0.75},
            parsed={"count": 3},
            detail="read 3, expected 4",
        ),
    ),
)
