"""IoU, GIoU and matching: against counting cells and trying every assignment, and what must hold for any boxes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.boxes import (
    MAX_COORDINATE,
    areas,
    as_boxes,
    centres,
    giou,
    iou,
    pairwise_giou,
    pairwise_iou,
    proper,
    reaches,
)
from mmr1_reward_server.matching import match_overlaps, match_points

NAN, INFINITY = math.nan, math.inf
Box = tuple[float, float, float, float]

small = st.integers(-8, 8)
any_number = st.floats(-1e6, 1e6) | st.sampled_from([0.0, NAN, INFINITY, -INFINITY, 1e308, -1e-308])
any_box = st.tuples(any_number, any_number, any_number, any_number)
pixel_box = st.tuples(small, small, st.integers(1, 8), st.integers(1, 8)).map(
    lambda at: (at[0], at[1], at[0] + at[2], at[1] + at[3])
)


def cells(box: Box) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = (int(value) for value in box)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


@given(pixel_box, pixel_box)
@settings(max_examples=100, deadline=None)
def test_integer_boxes_overlap_as_their_cells_do(first: Box, second: Box) -> None:
    both, either = cells(first) & cells(second), cells(first) | cells(second)
    corners = list(zip(first, second, strict=True))
    hull = cells((min(corners[0]), min(corners[1]), max(corners[2]), max(corners[3])))
    assert iou(first, second) == pytest.approx(len(both) / len(either), abs=1e-12)
    expected = len(both) / len(either) - (len(hull) - len(either)) / len(hull)
    assert giou(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "iou_value", "giou_value"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1, 1),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3, 1 / 3),
        ((0, 0, 1, 1), (2, 0, 3, 1), 0, -1 / 3),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0, 0),
        ((0, 0, 0.5, 0.5), (0, 0, 0.5, 1), 0.5, 0.5),  # smaller than a pixel
        ((-4, -4, -2, -2), (-4, -4, -2, -3), 0.5, 0.5),
        ((2, 2, 0, 0), (0, 0, 2, 2), 0, -1),  # inverted
        ((2, 0, 0, 2), (2, 0, 0, 2), 0, -1),
        ((NAN, 0, 2, 2), (0, 0, 2, 2), 0, -1),
        ((0, 0, 2, NAN), (0, 0, 2, NAN), 0, -1),
        ((0, 0, INFINITY, 2), (0, 0, 2, 2), 0, -1),
        ((-INFINITY, 0, INFINITY, 2), (-INFINITY, 0, INFINITY, 2), 0, -1),
        ((0, 0, 2 * MAX_COORDINATE, 2), (0, 0, 2 * MAX_COORDINATE, 2), 0, -1),
        ((0, 0, MAX_COORDINATE, 2), (0, 0, MAX_COORDINATE, 2), 1, 1),
        ((1, 1, 1, 1), (0, 0, 2, 2), 0, 0),  # empty, within the other
        ((1, 1, 1, 2), (0, 0, 2, 2), 0, 0),
        ((4, 0, 4, 2), (0, 0, 2, 2), 0, -0.5),  # empty, outside
        ((1, 1, 1, 1), (1, 1, 1, 1), 0, -1),
        ((0, 0, 2, 0), (1, 0, 3, 0), 0, -1),  # both on one line
        ((0, 0, 1, 0), (0, 1, 1, 1), 0, -1),  # both empty, with a hull
    ],
)
def test_every_kind_of_box_has_a_result(first: Box, second: Box, iou_value: float, giou_value: float) -> None:
    for one, other in ((first, second), (second, first)):
        assert iou(one, other) == pytest.approx(iou_value)
        assert giou(one, other) == pytest.approx(giou_value)


def test_areas_and_centres() -> None:
    boxes = as_boxes([(0, 0, 2, 3), (-2, -2, -1, 0), (2, 2, 0, 0), (1, 1, 1, 5), (0, 0, INFINITY, 1)])
    assert areas(boxes).tolist() == [6, 2, 0, 0, 0]
    assert centres(boxes)[:3].tolist() == [[1, 1.5], [-1.5, -1], [1, 1]]
    assert proper(boxes).tolist() == [True, True, False, True, False]
    assert as_boxes([]).shape == (0, 4)
    with pytest.raises(ValueError):
        as_boxes([(1, 2, 3), (1, 2, 3)])


@given(st.lists(any_box | pixel_box, max_size=6), st.lists(any_box | pixel_box, max_size=6))
@settings(max_examples=100, deadline=None)
def test_all_pairs_are_as_each_pair_and_within_bounds(first: list[Box], second: list[Box]) -> None:
    ious, gious = pairwise_iou(as_boxes(first), as_boxes(second)), pairwise_giou(as_boxes(first), as_boxes(second))
    assert ious.shape == gious.shape == (len(first), len(second))
    for (row, one), (column, other) in itertools.product(enumerate(first), enumerate(second)):
        assert (ious[row, column], gious[row, column]) == (iou(one, other), giou(one, other))
        assert (iou(one, other), giou(one, other)) == (iou(other, one), giou(other, one))
    assert ((ious >= 0) & (ious <= 1) & (gious >= -1) & (gious <= ious)).all()


@given(pixel_box, pixel_box, st.integers(-1000, 1000), st.integers(-1000, 1000), st.floats(0.001, 1000))
@settings(max_examples=100, deadline=None)
def test_moving_and_stretching_both_changes_nothing(first: Box, second: Box, dx: int, dy: int, factor: float) -> None:
    def moved(box: Box) -> Box:
        return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy

    def stretched(box: Box) -> Box:  # one axis more than the other, as between coordinate spaces
        return box[0] * factor, box[1] * 3, box[2] * factor, box[3] * 3

    for change in (moved, stretched):
        assert iou(change(first), change(second)) == pytest.approx(iou(first, second), abs=1e-9)
        assert giou(change(first), change(second)) == pytest.approx(giou(first, second), abs=1e-9)


def test_a_threshold_is_reached_despite_rounding() -> None:
    overlap = iou((0, 0, 0.1 + 0.2, 1), (0, 0, 0.6, 1))
    assert reaches(overlap, 0.5) and reaches(0.5 - 1e-12, 0.5)
    assert not reaches(0.499999, 0.5)
    assert not reaches(0.0, 1e-12)


def best_total(overlaps: np.ndarray[Any, Any], minimum: float) -> float:
    """By trying every assignment."""
    values = np.where(overlaps >= minimum, overlaps, 0)
    if values.shape[0] > values.shape[1]:
        values = values.T
    rows = range(values.shape[0])
    return max(
        sum(float(values[row, column]) for row, column in zip(rows, columns, strict=True))
        for columns in itertools.permutations(range(values.shape[1]), values.shape[0])
    )


grids = st.integers(1, 4).flatmap(
    lambda columns: st.lists(
        st.lists(st.integers(0, 20).map(lambda value: value / 20), min_size=columns, max_size=columns),
        min_size=1,
        max_size=4,
    )
)


@given(grids, st.sampled_from([0.05, 0.5, 0.9]))
@settings(max_examples=100, deadline=None)
def test_matching_has_the_largest_total_of_what_passes_the_gate(grid: list[list[float]], minimum: float) -> None:
    overlaps = np.array(grid)
    pairs = match_overlaps(overlaps, minimum)
    assert all(overlaps[pair] >= minimum for pair in pairs)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert pairs == sorted(pairs)
    assert sum(overlaps[pair] for pair in pairs) == pytest.approx(best_total(overlaps, minimum), abs=1e-6)


def test_the_gate_comes_before_the_matching() -> None:
    # 0.49 + 0.5 is the largest total of all, but 0.49 does not pass: what it leaves is less than 0.6.
    assert match_overlaps(np.array([[0.6, 0.49], [0.5, 0.0]]), 0.5) == [(0, 0)]
    assert match_overlaps(np.array([[0.6, 0.51], [0.5, 0.0]]), 0.5) == [(0, 1), (1, 0)]


def test_ties_are_settled_by_rule() -> None:
    assert match_overlaps(np.array([[1.0, 0.5], [0.5, 0.0]]), 0.5) == [(0, 1), (1, 0)]  # two pairs rather than one
    twice = np.array([[0.8], [0.8]])
    for preferred in ([[True], [False]], [[False], [True]]):
        assert match_overlaps(twice, 0.5, preferred=np.array(preferred)) == [(preferred.index([True]), 0)]
    assert match_overlaps(np.array([[0.9, 0.8]]), 0.5, preferred=np.array([[False, True]])) == [(0, 0)]
    assert match_overlaps(np.array([[0.9, 0.8]]), 0.5, allowed=np.array([[False, True]])) == [(0, 1)]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_matches_nothing(shape: tuple[int, int]) -> None:
    assert match_overlaps(np.zeros(shape), 0.5) == []
    pairs, distances = match_points(np.zeros((shape[0], 2)), np.zeros((shape[1], 2)))
    assert (pairs, distances.tolist()) == ([], [])


def test_points_are_matched_for_the_least_total_distance() -> None:
    # The nearest pair of all is not part of it.
    pairs, distances = match_points(np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 0.0], [50.0, 0.0], [0.0, 4.0]]))
    assert pairs == [(0, 2), (1, 0)]
    assert distances.tolist() == [4, 1]
    assert match_points(np.array([[0.0, 0.0]]), np.array([[9.0, 0.0], [0.0, 1.0]]))[0] == [(0, 1)]
