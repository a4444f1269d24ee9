"""Boxes come to the original's pixels as declared, tokens to shades as measured, and strange records harm neither."""

from __future__ import annotations

from typing import Any

import pytest

from mmr1.drawn_boxes import MAX_BOXES, Box, predicted, true
from mmr1.report.tokens import LEVELS, MAX_COLOURED, Piece, legend, level, pieces

SIZE = (640, 480)


@pytest.mark.parametrize(
    ("params", "numbers"),
    [
        ({}, [64, 120, 320, 360]),
        ({"response_space": "absolute"}, [64, 120, 320, 360]),
        ({"response_space": "absolute", "resized_size": [320, 240]}, [32, 60, 160, 180]),
        ({"response_space": "normalized_1000"}, [100, 250, 500, 750]),
        ({"response_space": "normalized_1000", "resized_size": [320, 240]}, [100, 250, 500, 750]),
        ({"response_space": "normalized_1"}, [0.1, 0.25, 0.5, 0.75]),
    ],
)
def test_a_response_in_any_space_is_drawn_in_pixels(params: dict[str, Any], numbers: list[float]) -> None:
    (box,) = predicted({"grounding": {"bbox_2d": numbers}}, {"grounding": params}, "grounding", SIZE)
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((64, 120, 320, 360))


def test_what_cannot_be_converted_is_not_drawn() -> None:
    box = {"grounding": {"bbox_2d": [100, 250, 500, 750]}}
    for params in ({"response_space": "normalized_1000"}, {"resized_size": [320, 240]}, {"response_space": "feet"}):
        assert predicted(box, {"grounding": params}, "grounding", None) == []
    assert predicted(box, {"grounding": {"response_space": "feet"}}, "grounding", SIZE) == []
    assert predicted(box, {}, "grounding", None) == [Box(100, 250, 500, 750)]


def test_the_tasks_own_reading_comes_first_and_a_numbered_reward_has_its_tasks_params() -> None:
    parsed = {"aaa": [{"bbox_2d": [1, 1, 2, 2]}], "detection-2": [{"bbox_2d": [10, 20, 500, 1000], "label": "7"}]}
    coordinates = {"detection": {"response_space": "normalized_1000"}}
    assert predicted(parsed, coordinates, "detection", (100, 200)) == [Box(1, 4, 50, 200, "7")]


def test_truth_is_drawn_in_every_form_that_the_reward_server_takes() -> None:
    box = Box(1, 2, 3, 4)
    for solution in ([1, 2, 3, 4], [[1, 2, 3, 4]], "[1, 2, 3, 4]", {"bbox_2d": [1, 2, 3, 4]}, [{"bbox": [1, 2, 3, 4]}]):
        assert true(solution, {}, "grounding", SIZE) == [box], solution
    halved = {"grounding": {"solution_space": "normalized_1000"}}
    assert true([500, 500, 1000, 1000], halved, "grounding", SIZE) == [Box(320, 240, 640, 480)]
    assert (
        true("1234", {}, "ocr", SIZE) == true([1, 2, 3, 4], {}, "accuracy", SIZE) == true(3, {}, "counting", SIZE) == []
    )


def test_inverted_boxes_points_and_labels() -> None:
    parsed = [{"bbox_2d": [30, 40, 10, 20], "label": None}, {"point_2d": [5, 6], "label": 7}, {"label": "none"}]
    found = predicted({"detection": parsed}, {}, "detection", SIZE)
    assert found == [Box(10, 20, 30, 40), Box(5, 6, 5, 6, "7")]
    assert [box.is_point for box in found] == [False, True]


@pytest.mark.parametrize(
    "parsed",
    [None, 3, "x", [], {"a": None}, {"a": [None, 3, "x", [1, 2, 3, 4]]}, {"a": {"bbox_2d": [1, "2", None, True]}},
     {"a": {"bbox_2d": [float("nan"), 1, 2, 3]}}, {"a": {"bbox_2d": [1e300, 1, 2, 3]}}, {"a": {"bbox_2d": [1, 2, 3]}}],
)  # fmt: skip
def test_readings_that_are_no_boxes_are_none(parsed: object) -> None:
    assert predicted(parsed, "not params", "a", SIZE) == []


def test_the_number_of_boxes_is_bounded() -> None:
    many = [{"bbox_2d": [0, 0, place + 1, 9]} for place in range(500)]
    assert len(predicted({"detection": many}, {}, "detection", SIZE)) == len(true(many, {}, "x", SIZE)) == MAX_BOXES


def test_a_gaps_shade_is_where_the_legend_says_that_it_begins() -> None:
    shown = dict(legend())
    for shade, words in shown.items():
        at = float(words.replace("\u2212", "-"))
        assert level(at) == shade
        assert abs(level(at * 0.99)) == max(0, abs(shade) - 1)
    assert len(shown) == 2 * len(LEVELS) + 1


def test_neighbours_without_a_shade_are_one_piece_and_nothing_is_lost() -> None:
    tokens, gaps = ["<answer>", "3", "4", "</answer>", "<|im_end|>"], [0.0, 0.5, -0.001, 0.02, -2.0]
    found, told = pieces(tokens, gaps, "<answer>34</answer>", 4000)
    assert found == [Piece("<answer>"), Piece("3", 3, 0.5), Piece("4</answer>"), Piece("<|im_end|>", -4, -2.0)]
    assert told is not None and (told.largest, told.at) == (-2.0, "<|im_end|>")
    assert told.mean_abs == pytest.approx(2.521 / 5)


def test_halves_of_a_character_are_shown_as_one_with_the_larger_gap() -> None:
    assert pieces(["a", "\u00e9", "", "b"], [0.0, 0.01, -0.4, None], "a\u00e9b", 99)[0] == [
        Piece("a"), Piece("\u00e9", -3, -0.4), Piece("b")
    ]  # fmt: skip


def test_what_lies_behind_the_recorded_tokens_is_shown_plain_and_clipped() -> None:
    found, _ = pieces(["ab", "cd"], [1.0, 0.0], "abcd" + "x" * 20, 10)
    assert found == [Piece("ab", 4, 1.0), Piece("cd" + "x" * 6 + " … (14 more characters)")]
    many, _ = pieces(["ab"] * 900, [1.0] * 900, "ab" * 900, 4000)
    assert sum(piece.level != 0 for piece in many) == MAX_COLOURED
    assert "".join(piece.text for piece in many) == "ab" * 900


@pytest.mark.parametrize(("tokens", "gaps"), [(None, None), ([], []), ("ab", [1]), (["a"], "b"), (["a"], [None])])
def test_without_gaps_there_is_the_text_alone(tokens: object, gaps: object) -> None:
    found, told = pieces(tokens, gaps, "a", 99)
    assert [piece.text for piece in found] == ["a"] and not any(piece.level for piece in found) and told is None


def test_a_crowd_is_told_from_an_object() -> None:
    solution = [{"bbox_2d": [0, 0, 5, 5], "label": "a", "iscrowd": 1}, {"bbox_2d": [0, 0, 2, 2], "label": "a"}]
    assert [(box.label, box.is_crowd) for box in true(solution, {}, "detection", None)] == [
        ("a (crowd)", True),
        ("a", False),
    ]
