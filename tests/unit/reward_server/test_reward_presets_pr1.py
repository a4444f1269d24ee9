"""pr1_grounding and pr1_counting against values that the original functions gave."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.api import Outcome
from tests.unit.reward_server.reward_presets import TEXTS, check_any_text, check_both, score

CAT = "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|><|im_end|>"
BOX = "[100, 200, 300, 400]"


@pytest.mark.parametrize(
    ("response", "right", "published"),
    [
        (CAT, 1, 1),
        (CAT + "<|endoftext|>", 1, 1),
        (CAT.replace("(300,400)", "(250,400)"), 0.5625, 0.5625),
        ("[0.1,0.2,0.3,0.4]", 1, 1),
        ("(0.1, 0.2, 0.3, 0.4)", 1, 1),
        ("(0.1,0.2),(0.3,0.4)", 1, 1),
        ("[0.15,0.25,0.35,0.45] (0.1,0.2,0.3,0.4)", (0.0225 / 0.0575) ** 2, (22500 / 57500) ** 2),
        ("(0.1,0.2,0.3,0.4) [0.15,0.25,0.35,0.45]", (0.0225 / 0.0575) ** 2, (22500 / 57500) ** 2),  # lists first
        ("<|box_start|>[-50,200,300,400]", (200 / 350) ** 2, 0.32653061224489793),
        ("[0.1, 0.2, 0.3, 0.4] is the box", 1, 1),
        ("[0.1009,0.2009,0.3,0.4]", (0.1991 / 0.2) ** 4, 1),  # cut off to 100, 200
        ("[100,200,300,400]", 0, 0),  # without box tokens this is a thousand times too large
        ("[0.3,0.4,0.1,0.2]", 0, 0),
        ("[0.3,0.2,0.1,0.4]", 0, 0),  # the original divides by zero
        ("[0.1 ,0.2,0.3,0.4]", 0, 0),
        ("[" + "9" * 400 + ",0.2,0.3,0.4]", 0, 0),
        ("no", 0, 0),
        ("", 0, 0),
    ],
)
def test_grounding(response: str, right: float, published: float) -> None:
    check_both("pr1_grounding", response, BOX, right, published)


@pytest.mark.parametrize(
    ("response", "right", "published"),
    [
        (CAT, 1, 1),
        (CAT + "\n and more", 1, 1),
        ("<|endoftext|>" + CAT, 1, 1),
        (CAT.replace("a cat", "a\ncat"), 0, 1),
        (CAT.replace("<|im_end|>", ""), 0, 1),
        (CAT.replace("<|object_ref_end|>", ""), 0, 1),
        ("<anything", 0, 1),
        (">", 0, 1),
        ("box_start", 0, 1),
        ("im_end?", 0, 1),
        ("object_ref", 0, 0),
        ("plain", 0, 0),
        (" " + CAT, 0, 0),
        ("", 0, 0),
    ],
)
def test_grounding_format(response: str, right: float, published: float) -> None:
    check_both("pr1_grounding", response, BOX, right, published, score="format")


def test_grounding_adds_up() -> None:
    check_both("pr1_grounding", CAT, BOX, 2, 2, score="sum")
    check_both("pr1_grounding", "<|box_start|>(100,200),(300,300)", BOX, 0.25, 1.25, score="sum")
    result = score("pr1_grounding", "no box", BOX)
    assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, 0)


def counted(*centres: tuple[float, float], half: int = 50) -> str:
    boxes = (f"<|box_start|>({x - half},{y - half}),({x + half},{y + half})<|box_end|>" for x, y in centres)
    return f"<|object_ref_start|>people<|object_ref_end|>{''.join(boxes)}<|im_end|>"


A, B, C = (100, 100), (500, 500), (900, 900)
POINTS = [[100, 100], [500, 500], [900, 900]]


@pytest.mark.parametrize(
    ("response", "right", "published"),
    [
        (counted(A, B, C), 1, 1),
        (counted(C, A, B), 1, 1),
        (counted(A, B), 2 / 3, 0.6666666865348816),
        (counted(A, B, C, (300, 300)), 0.75, 0.75),
        (counted((200, 100), B, C), 0.9764297604560852, 0.9764297604560852),
        (counted((495, 246)), 0.27345335483551025, 0.27345335483551025),
        (counted((101, 203), (517, 333)), 0.6028225421905518, 0.6028225421905518),
        (counted(A, B, C) + "<|endoftext|>", 1, 1),
        (counted(A).replace("(50,50)", "[50,50]"), 1 / 3, 0.3333333432674408),
        (counted(A).replace("(50,50),(150,150)", "[[50, 50], [150, 150]]"), 1 / 3, 0.3333333432674408),
        (counted(A, B).replace("(450,450)", "(450.5,450)"), 0.6666077375411987, 0.6666077375411987),
        (counted(A, B).replace("(450,450)", "(450)"), 1 / 3, 0.3333333432674408),  # what is no box is left out
        (counted(A).replace("(50,50)", "(50)"), 0, 0),
        (counted(A) + "<|box_start|>(450,450),(550,550)<|box_end|>", 1 / 3, 0.6666666865348816),
        (counted((5000, 5000)), 0, -1.0333333015441895),
        (counted((-50000, 3000)), 0, -11.495116233825684),
        (counted((100, -5000), B, C), 2 / 3, -0.20208144187927246),
        (counted(), 0, 0),
        ("x" + counted(A), 0, 0),
        (counted(A).replace("<|im_end|>", ""), 0, 0),
        ("3", 0, 0),
    ],
)
def test_counting(response: str, right: float, published: float) -> None:
    check_both("pr1_counting", response, POINTS, right, published)
    check_both("pr1_counting", response, str(POINTS), right, published)


@pytest.mark.parametrize(
    ("corners", "published"),
    [
        ("(495,246),(999,997)", 0.3147321939468384),
        ("(497,248),(919,397)", 0.40242040157318115),
        ("(499,216),(919,987)", 0.327553927898407),
    ],
)
def test_counting_as_documented_by_its_authors(corners: str, published: float) -> None:
    response = f"<|object_ref_start|>people<|object_ref_end|><|box_start|>{corners}<|box_end|><|im_end|>"
    check_both("pr1_counting", response, [[221, 343], [476, 173]], published, published)


def test_counting_where_there_is_nothing() -> None:
    check_both("pr1_counting", counted(A), [], 0, 0)
    result = score("pr1_counting", counted(*[A] * 1001), POINTS)
    assert (result.outcome, result.detail) == (Outcome.INVALID_OUTPUT, "more than 1000 boxes")


@pytest.mark.parametrize("solution", [None, 3, "three", "[[1, 2], [3]]", [[1, 2, 3]], [["a", 2]], "[" * 1000])
def test_counting_refuses_solutions_that_are_no_points(solution: Any) -> None:
    result = score("pr1_counting", counted(A), solution)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert result.detail.startswith("solution for task pr1_counting: ")


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.booleans(), st.sampled_from(["iou_squared", "format", "sum"]))
def test_any_text(response: str, bug_compatible: bool, which: str) -> None:
    check_any_text("pr1_grounding", response, BOX, 0, 2, bug_compatible=bug_compatible, score=which)
    wrapped = counted(A).replace("<|box_end|>", f"<|box_end|><|box_start|>{response}<|box_end|>")
    low = -1e120 if bug_compatible else 0
    for text in (response, wrapped):
        check_any_text("pr1_counting", text, POINTS, low, 1, bug_compatible=bug_compatible)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=1, max_size=6))
def test_counting_is_one_for_the_truth_alone(centres: list[tuple[int, int]]) -> None:
    truth = [list(centre) for centre in centres]
    check_both("pr1_counting", counted(*reversed(centres)), truth, 1, 1)
    assert (score("pr1_counting", counted(*centres, (0, 0)), truth).reward or 0) < 1
