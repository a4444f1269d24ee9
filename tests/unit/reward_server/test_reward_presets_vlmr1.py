"""vlmr1_iou, vlmr1_weighted_sum and vlmr1_od_ap against values that the original functions gave."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server import coco_ap
from mmr1_reward_server.api import Outcome
from tests.unit.reward_server.reward_presets import TEXTS, check_any_text, check_both, score

Labelled = tuple[list[float], Any]

BOX = "<answer> [10, 20, 110, 220] </answer>"


@pytest.mark.parametrize(
    ("inside", "right", "published"),
    [
        ("[10, 20, 110, 220]", 1, 1),
        ("[10,20,60,220]", 0.5, 0.5),
        ('{"bbox_2d": [30, 20, 130, 220]}', 2 / 3, 2 / 3),
        ("[1, 2, 3] [10, 20, 110, 220]", 1, 1),
        ("[10, 20,\n110, 220] [0, 0, 1, 1]", 1, 1),
        ("[10,20,12,220]", 0.02, 0.02),
        ("[10, 20, 11, 220]", 0.01, 0),  # one pixel wide
        ("[10.0, 20, 110, 220]", 1, 0),
        ("[ 10, 20, 110, 220 ]", 1, 0),
        ("[-90, 20, 110, 220]", 0.5, 0),
        ("[110,220,10,20]", 0, 0),
        ("[500,500,600,600]", 0, 0),
        ("(10, 20, 110, 220)", 0, 0),
        ("[10, 20, 110]", 0, 0),
        ("[" + "9" * 400 + ", 20, 110, 220]", 0, 0),
        ("none", 0, 0),
    ],
)
def test_iou(inside: str, right: float, published: float) -> None:
    check_both("vlmr1_iou", f"<think>[0, 0, 1, 1]</think><answer>{inside}</answer>", BOX, right, published)
    check_both("vlmr1_iou", f"<answer>{inside}</answer><answer>[0, 0, 1, 1]</answer>", BOX, right, published)
    check_both("vlmr1_iou", inside, BOX, 0, 0)  # no tags


def test_iou_of_boxes_in_coordinates_from_0_to_1() -> None:
    check_both("vlmr1_iou", "<answer>[0, 0, 1, 1]</answer>", "<answer>[0, 0, 1, 1]</answer>", 1, 0)
    check_both("vlmr1_iou", "<answer>[0, 0, 1, 1]</answer>", "<answer>[0.1, 0.1, 0.9, 0.9]</answer>", 0.64, 0)


@pytest.mark.parametrize(
    ("inside", "image_size", "expected"),
    [
        ("[10, 20, 110, 220]", (560, 840), 1),
        ("[10, 20, 110, 220]", (500, 700), 0.703785543990231),
        ("[10,20,60,220]", (500, 700), 0.3501640112464855),
        ("[30, 20, 130, 220]", (500, 700), 0.6384275568976123),
        ("[10,20,12,220]", (500, 700), 0.005781028787163751),
    ],
)
def test_iou_of_resized_images(inside: str, image_size: tuple[int, int], expected: float) -> None:
    for bug_compatible in (False, True):
        params = {"resized_size": [280, 420], "bug_compatible": bug_compatible}
        response, solution = f"<answer>{inside}</answer>", "<answer>[20, 40, 220, 440]</answer>"
        result = score("vlmr1_iou", response, solution, image_size, **params)
        assert result.reward == pytest.approx(expected, abs=1e-6)
        result = score("vlmr1_iou", response, solution, **params)
        assert (result.outcome, result.detail) == (Outcome.VERIFIER_ERROR, "resized_size needs the item's image_size")


def boxes(*labelled: Labelled) -> str:
    items = [{"bbox_2d": box, "label": label} if label else {"bbox_2d": box} for box, label in labelled]
    return f"<answer>\n```json\n{json.dumps(items)}\n```\n</answer>"


CAT: Labelled = ([10, 10, 110, 110], "cat")
DOG: Labelled = ([200, 200, 300, 320], "dog")
TRUTH = boxes(CAT, DOG)
BROKEN = TRUTH.replace("]\n```", "\n```")


@pytest.mark.parametrize(
    ("response", "right", "published"),
    [
        (TRUTH, 1, 1),
        (boxes(DOG, CAT), 1, 1),
        (TRUTH.replace("cat", "CAT"), 1, 1),
        (TRUTH.removeprefix("<answer>").removesuffix("</answer>"), 1, 1),
        (boxes(CAT) + TRUTH, 1, 1),  # the last answer
        (boxes((CAT[0], "dog"), (DOG[0], "cat")), 0.3, 0.3),
        (boxes(CAT), 0.575, 0.575),
        (boxes(CAT, DOG, DOG), 0.95, 0.95),
        (boxes(CAT, DOG, ([500, 500, 600, 600], "bird")), 0.95, 0.95),
        (boxes(([20, 20, 120, 120], "cat"), DOG), 0.888235294117647, 0.888235294117647),
        (boxes(([10, 10, 110, 60], "cat"), DOG), 0.825, 0.825),
        (boxes((CAT[0], "bird"), DOG), 0.65, 0.65),
        (boxes(([600, 600, 700, 700], "cat")), 0, 0),
        (boxes(([110, 110, 10, 10], "cat"), DOG), 0.5, 0.5),
        (boxes(([1, 2, 3], "cat"), DOG), 0.5, 0.5),
        (boxes(([*CAT[0], 1], "cat"), DOG), 0.5, 1),
        (boxes(CAT, (DOG[0], None)), 0.65, 0.65),
        (boxes((CAT[0], None), DOG), 0.65, 0),  # where the original fails
        (boxes((CAT[0], "dog"), ([200, 200, 300, 319], None)), 0.3, 0.6470833333333332),  # the label before it
        (boxes((CAT[0], 3), DOG), 0.65, 0),
        (boxes(), 0, 0),
        ("<answer>None</answer>", 0, 0),
        ('<answer>```json\n{"bbox_2d": [10, 10, 110, 110], "label": "cat"}\n```</answer>', 0, 0),
        ("<answer>```json\n3\n```</answer>", 0, 0),
        (BROKEN, 0, 0),
        ("", 0, 0),
    ],
)
def test_weighted_sum(response: str, right: float, published: float) -> None:
    check_both("vlmr1_weighted_sum", response, TRUTH, right, published)


@pytest.mark.parametrize(
    ("response", "none_right", "none_published", "empty_right", "empty_published"),
    [
        ("<answer>None</answer>", 1, 1, 1, 1),
        ("<answer>none.</answer>", 1, 1, 1, 1),
        ("none", 1, 1, 1, 1),
        (boxes(), 1, 0, 1, 1),
        (TRUTH, 0, 0, 0, 0),
        ("<answer>nothing</answer>", 0, 0, 0, 1),
        (BROKEN, 0, 0, 0, 1),
        ("", 0, 0, 0, 1),
    ],
)
def test_weighted_sum_where_there_is_nothing(
    response: str, none_right: float, none_published: float, empty_right: float, empty_published: float
) -> None:
    check_both("vlmr1_weighted_sum", response, "<answer>None</answer>", none_right, none_published)
    check_both("vlmr1_weighted_sum", response, boxes(), empty_right, empty_published)


def test_weighted_sum_of_thin_boxes_and_coordinates_from_0_to_1() -> None:
    small = boxes(([0.1, 0.1, 0.3, 0.3], "cat"), ([0.5, 0.5, 0.9, 0.9], "dog"))
    check_both("vlmr1_weighted_sum", small, small, 1, 0)
    for width, published in ((1, 0), (2, 1)):
        thin = boxes(([0, 0, width, 100], "cat"))
        check_both("vlmr1_weighted_sum", thin, thin, 1, published)


def test_weighted_sum_matches_a_thousand_boxes_at_once() -> None:
    many = boxes(*(([x, y, x + 9, y + 9], "cat") for x in range(0, 400, 10) for y in range(0, 250, 10)))
    began = time.perf_counter()
    check_both("vlmr1_weighted_sum", many, many, 1, 1)
    assert time.perf_counter() - began < 5
    too_many = score("vlmr1_weighted_sum", boxes(*[CAT] * 1001), TRUTH)
    assert (too_many.outcome, too_many.detail) == (Outcome.INVALID_OUTPUT, "more than 1000 boxes")


@pytest.mark.parametrize(
    ("response", "ap", "ap50", "od_length"),
    [
        (TRUTH, 1, 1, 1),
        (boxes(DOG, CAT), 1, 1, 1),
        (boxes(CAT) + TRUTH, 1, 1, 1),
        (boxes((CAT[0], "dog"), (DOG[0], "cat")), 0, 0, 0),
        (boxes(CAT), 0.5, 0.5, 0.5),
        (boxes(CAT, DOG, DOG), 1, 1, 2 / 3),
        (boxes(CAT, DOG, ([500, 500, 600, 600], "bird")), 1, 1, 2 / 3),
        (boxes(([500, 500, 600, 600], "cat"), CAT, DOG), 0.75, 0.75, 0.5),  # of equal scores the first counts
        (boxes(([20, 20, 120, 120], "cat"), DOG), 0.7, 1, 0.7),
        (boxes(([10, 10, 110, 60], "cat"), DOG), 0.55, 1, 0.55),
        (boxes((CAT[0], "bird"), DOG), 0.5, 0.5, 0.5),
        (boxes((CAT[0], None), DOG), 0.5, 0.5, 0.5),
        (boxes(([1, 2, 3], "cat"), DOG), 0.5, 0.5, 0.5),
        (TRUTH.replace("cat", "CAT"), 0.5, 0.5, 0.5),  # unlike in weighted_sum
        (boxes(([600, 600, 700, 700], "cat")), 0, 0, 0),
        (boxes(), 0, 0, 0),
        ("<answer>None</answer>", 0, 0, 0),
        (TRUTH.removeprefix("<answer>").removesuffix("</answer>"), 0, 0, 0),
        ('<answer>```json\n{"bbox_2d": [10, 10, 110, 110], "label": "cat"}\n```</answer>', 0, 0, 0),
        (BROKEN, 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_od_ap(response: str, ap: float, ap50: float, od_length: float) -> None:
    check_both("vlmr1_od_ap", response, TRUTH, ap, ap)
    check_both("vlmr1_od_ap", response, TRUTH, ap50, ap50, score="ap50")
    check_both("vlmr1_od_ap", response, TRUTH, od_length, od_length, length_penalty=True)


@pytest.mark.parametrize(
    ("response", "right", "published"),
    [
        ("<answer>None</answer>", 1, 1),
        ("<answer>\nNone\n</answer>", 1, 1),
        (boxes(), 1, 1),
        (TRUTH, 0, 0),
        ("<answer>nothing</answer>", 0, 1),
        ("<answer>none</answer>", 0, 1),
        (BROKEN, 0, 1),
        ("None", 0, 0),
        ("", 0, 0),
    ],
)
def test_od_ap_where_there_is_nothing(response: str, right: float, published: float) -> None:
    check_both("vlmr1_od_ap", response, "<answer>None</answer>", right, published)
    check_both("vlmr1_od_ap", response, boxes(), right, published)


def test_od_ap_of_many_boxes_and_of_inverted_ones() -> None:
    crowd = boxes(*(([x * 10, 0, x * 10 + 9, 9], "cat") for x in range(130)))
    check_both("vlmr1_od_ap", crowd, crowd, 1, 0.7623762376237624)
    one_way, both_ways = ([110, 10, 10, 110], "cat"), ([110, 110, 10, 10], "cat")
    check_both("vlmr1_od_ap", boxes(one_way, CAT, DOG), TRUTH, 0.75, 1)
    check_both("vlmr1_od_ap", boxes(both_ways, CAT, DOG), TRUTH, 0.75, 0.75)
    check_both("vlmr1_od_ap", boxes(([*CAT[0], 1], "cat"), DOG), TRUTH, 0.5, 1)
    check_both("vlmr1_od_ap", boxes(([float("nan")] * 4, "cat"), DOG), TRUTH, 0.5, 0.5)


def test_od_ap_prints_nothing_and_says_when_pycocotools_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_both("vlmr1_od_ap", TRUTH, TRUTH, 1, 1)
    assert capsys.readouterr().out == ""
    coco_ap._pycocotools.cache_clear()
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    result = score("vlmr1_od_ap", TRUTH, TRUTH)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert "pip install 'mmr1-reward-server[coco]'" in result.detail


@pytest.mark.parametrize("task", ["vlmr1_iou", "vlmr1_weighted_sum", "vlmr1_od_ap"])
@pytest.mark.parametrize(
    "solution",
    [None, 3, "", "cat", "<answer>cat</answer>", BROKEN, "<answer>[1, 2, 3]</answer>", boxes(([3, 3, 1, 1], "cat"))],
)
def test_solutions_of_another_form_are_refused(task: str, solution: Any) -> None:
    result = score(task, TRUTH, solution)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert result.detail.startswith(f"solution for task {task}: ")


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.booleans(), st.sampled_from([TRUTH, boxes(), "<answer>None</answer>"]))
def test_any_text(response: str, bug_compatible: bool, solution: str) -> None:
    for text in (response, f"<answer>{response}</answer>", f"<answer>```json[{response}]```</answer>"):
        check_any_text("vlmr1_iou", text, BOX, 0, 1, bug_compatible=bug_compatible)
        check_any_text("vlmr1_weighted_sum", text, solution, 0, 1, bug_compatible=bug_compatible)
        check_any_text("vlmr1_od_ap", text, solution, 0, 1, bug_compatible=bug_compatible)


NUMBERS = st.integers(-5, 30) | st.floats() | st.integers(0, 10**400)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.lists(NUMBERS, min_size=3, max_size=5), st.sampled_from(["cat", "dog", None]))), st.booleans()
)
def test_any_boxes(labelled: list[Labelled], bug_compatible: bool) -> None:
    response = boxes(*labelled)
    check_any_text("vlmr1_weighted_sum", response, TRUTH, 0, 1, bug_compatible=bug_compatible)
    check_any_text("vlmr1_od_ap", response, TRUTH, 0, 1, bug_compatible=bug_compatible)
    if not bug_compatible:
        check_any_text("vlmr1_iou", response, BOX, 0, 1)
