"""Coordinate spaces: what is converted, what has to be said for it, and true boxes that cannot be right."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mmr1_reward_server.coordinates import (
    CoordinateParams,
    check_within_image,
    read_true_box,
    read_true_point,
    to_pixels,
    to_solution_space,
)
from mmr1_reward_server.registry import BadItem

SIZE = (800, 400)
RESIZED = (400, 100)


@pytest.mark.parametrize(
    ("response", "solution", "resized", "needs_size", "factors"),
    [
        ("absolute", "absolute", None, False, (1, 1)),
        ("normalized_1", "normalized_1", None, False, (1, 1)),
        ("normalized_1000", "normalized_1000", RESIZED, False, (1, 1)),
        ("normalized_1000", "normalized_1", None, False, (0.001, 0.001)),
        ("normalized_1", "normalized_1000", None, False, (1000, 1000)),
        ("normalized_1", "absolute", None, True, (800, 400)),
        ("normalized_1000", "absolute", RESIZED, True, (0.8, 0.4)),
        ("absolute", "normalized_1", None, True, (1 / 800, 1 / 400)),
        ("absolute", "normalized_1", RESIZED, False, (1 / 400, 1 / 100)),
        ("absolute", "absolute", RESIZED, True, (2, 4)),
    ],
)
def test_responses_are_brought_into_the_solutions_space(
    response: Any, solution: Any, resized: Any, needs_size: bool, factors: tuple[float, float]
) -> None:
    params = CoordinateParams(response_space=response, solution_space=solution, resized_size=resized)
    assert to_solution_space(params, SIZE) == pytest.approx(factors)
    if needs_size:
        with pytest.raises(BadItem, match="send image_size"):
            to_solution_space(params, None)
    else:
        assert to_solution_space(params, None) == pytest.approx(factors)
    pixels = to_pixels(params, SIZE)
    assert pixels.diagonal == pytest.approx(894.427191)
    assert pixels.of_response == pytest.approx(
        tuple(factor * own for factor, own in zip(factors, pixels.of_solution, strict=True))
    )
    with pytest.raises(BadItem, match="send image_size"):
        to_pixels(params, None)


@pytest.mark.parametrize("params", [{"response_space": "auto"}, {"solution_space": None}, {"resized_size": [0, 5]}])
def test_spaces_have_names(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CoordinateParams.model_validate(params)


@pytest.mark.parametrize(
    ("space", "size", "largest"), [("normalized_1", None, 2), ("normalized_1000", SIZE, 2000), ("absolute", SIZE, 1600)]
)
def test_solutions_in_another_space_than_declared_are_refused(space: Any, size: Any, largest: float) -> None:
    params = CoordinateParams(solution_space=space)
    check_within_image([0, -largest, largest], params, size)
    check_within_image([], params, size)
    with pytest.raises(BadItem, match=f"solution_space is {space}"):
        check_within_image([0, 1, largest * 1.01], params, size)


def test_without_a_size_nothing_is_known_of_pixels() -> None:
    check_within_image([1e9], CoordinateParams(), None)


NO_NUMBERS = [[0, 0, 1, float("nan")], [0, 0, 1, float("inf")], [0, 0, 1, 10**400], [0, 0, 1, True], ["0", 0, 1, 1]]
NO_BOXES = [[1, 2, 3], [1, 2, 3, 4, 5], [3, 0, 1, 1], [0, 0, 0, 1], None, "[0, 0, 1, 1]", {"bbox": [0, 0, 1, 1]}]


@pytest.mark.parametrize("box", NO_NUMBERS + NO_BOXES)
def test_true_boxes_are_boxes(box: Any) -> None:
    with pytest.raises(ValueError, match="must be a box"):
        read_true_box(box)
    with pytest.raises(ValueError, match="must be a point"):
        read_true_point(box)


def test_true_points_are_points_or_centres() -> None:
    assert read_true_box([-1, 0.5, 3, 4]) == (-1, 0.5, 3, 4)
    assert read_true_point([1, 2]) == (1, 2)
    assert read_true_point([1, 2, 3, 5]) == (2, 3.5)
