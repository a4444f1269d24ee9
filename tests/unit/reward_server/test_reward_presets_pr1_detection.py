"""pr1_detection against values that the original function gave."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.api import Outcome
from mmr1_reward_server.rewards.presets.pr1_detection import COCO_CLASSES
from tests.unit.reward_server.reward_presets import TEXTS, check_any_text, check_both, score

Labelled = tuple[list[float], Any]

TRUTH = {"target_id": [1, 18], "target_box": [[10, 10, 110, 110], [200, 200, 300, 320]]}
NOTHING: dict[str, Any] = {"target_id": [], "target_box": []}
PERSON: Labelled = ([10, 10, 110, 110], "person")
DOG: Labelled = ([200, 200, 300, 320], "dog")


def boxes(*labelled: Labelled) -> str:
    return json.dumps([{"bbox_2d": box, "label": label} if label else {"bbox_2d": box} for box, label in labelled])


def test_classes_are_those_of_coco() -> None:
    some = {"person": 1, "stop sign": 13, "dog": 18, "kite": 38, "tv": 72, "book": 84, "toothbrush": 90}
    assert len(COCO_CLASSES) == 80
    assert some.items() <= COCO_CLASSES.items()


@pytest.mark.parametrize(
    ("response", "right", "published"),
    [
        (boxes(PERSON, DOG), 3, 3),
        (boxes(DOG, PERSON), 3, 3),
        (f"```json\n{boxes(PERSON, DOG)}\n```", 3, 3),
        (boxes(PERSON), 2.5, 2.5),
        (boxes(PERSON, DOG, DOG), 2.683333158493042, 2.683333158493042),
        (boxes(PERSON, DOG, ([500, 500, 600, 600], "cat")), 2.683333158493042, 2.683333158493042),
        (boxes((PERSON[0], "dog"), (DOG[0], "person")), 2, 2),
        (boxes((PERSON[0], "cat"), DOG), 2.5, 2.5),
        (boxes(([20, 20, 120, 120], "person"), DOG), 2.8403360843658447, 2.8403360843658447),
        (
            boxes(([10.5, 10, 110, 110], "person"), ([200, 205.25, 300, 320], "dog")),
            2.9756250381469727,
            2.9756250381469727,
        ),
        (boxes(([10, 10, 110, 60], "person"), DOG), 2.125, 2.125),  # IoU 0.5 is not enough
        (
            boxes(*(([10 + x, 10, 110 + x, 110], "person") for x in range(0, 60, 7))),
            1.6919190883636475,
            1.6919190883636475,
        ),
        (boxes(PERSON, (DOG[0], "unicorn")), 2.375, 2.375),
        (boxes((PERSON[0], None), DOG), 2.375, 2.375),
        (boxes(PERSON, ([200, 200, 200, 200], "dog")), 2.125, 2.125),
        (boxes(([600, 600, 700, 700], "person")), 0.25, 0.25),
        (boxes((PERSON[0], "unicorn")), 0, 0),
        (boxes(PERSON, ([300, 320, 200, 200], "dog")), 2.375, 0),
        (boxes(PERSON, ([1, 2, 3], "dog")), 2.375, 0),
        (boxes(PERSON, DOG, ([1, 1, 2, 2], "toothbrush")), 2.683333158493042, 0),
        ("[]", 0, 0),
        ('{"bbox_2d": [10, 10, 110, 110], "label": "person"}', 0, 0),
        ('[{"bbox_2d": "x", "label": "person"}]', 0, 0),
        ("3", 0, 0),
        ("no", 0, 0),
        ("", 0, 0),
    ],
)
def test_detection(response: str, right: float, published: float) -> None:
    check_both("pr1_detection", response, TRUTH, right, published)
    check_both("pr1_detection", response, json.dumps(TRUTH), right, published)


@pytest.mark.parametrize(
    ("labelled", "without_penalty", "other_weights"),
    [
        ([PERSON, DOG], 3, 4),
        ([PERSON], 2.75, 3.5),
        ([PERSON, DOG, DOG], 2.8499999046325684, 4),
        ([(PERSON[0], "cat"), DOG], 2.5, 3.5),
        ([(PERSON[0], "dog"), (DOG[0], "person")], 2, 4),
        ([PERSON, (DOG[0], "unicorn")], 2.625, 3.5),
        ([([10 + x, 10, 110 + x, 110], "person") for x in range(0, 60, 7)], 2.3863635063171387, 2.7373738288879395),
        ([([600, 600, 700, 700], "person")], 0.25, 0.25),
    ],
)
def test_weights(labelled: list[Labelled], without_penalty: float, other_weights: float) -> None:
    check_both("pr1_detection", boxes(*labelled), TRUTH, without_penalty, without_penalty, do_penalty=False)
    weights = {"coverage_scale": 1, "f1_scale": 1, "cls_coe": 0.5, "iou_coe": 2}
    check_both("pr1_detection", boxes(*labelled), TRUTH, other_weights, other_weights, **weights)


@pytest.mark.parametrize(
    ("response", "right", "published"), [("[]", 3, 0), (boxes(PERSON), 0.25, 0.25), ("", 0, 0), ("[3]", 0, 0)]
)
def test_where_there_is_nothing(response: str, right: float, published: float) -> None:
    check_both("pr1_detection", response, NOTHING, right, published)


@pytest.mark.parametrize(
    ("labels", "target_id", "right", "published"),
    [
        (("cat", "dog"), [18, 17], 3, 2),
        (("dog", "cat"), [18, 17], 3, 2),
        (("dog", "person"), [18, 17], 2.5, 2.5),
        (("person", "dog"), [18, 17], 2.5, 2),
        (("dog", "person"), [17, 18], 2.5, 2),
        (("cat", "dog"), [18], 2.5, 1.5),
        (("dog", "cat"), [18], 2.5, 1.5),
    ],
)
def test_of_boxes_at_one_place_the_one_with_the_true_label_is_matched(
    labels: tuple[str, ...], target_id: list[int], right: float, published: float
) -> None:
    response = boxes(*((PERSON[0], label) for label in labels))
    truth = {"target_id": target_id, "target_box": [PERSON[0]] * len(target_id)}
    check_both("pr1_detection", response, truth, right, published)


def test_toothbrushes_are_found() -> None:
    truth = {"target_id": [90], "target_box": [PERSON[0]]}
    check_both("pr1_detection", boxes((PERSON[0], "toothbrush")), truth, 3, 0)
    check_both("pr1_detection", boxes(PERSON), truth, 2, 2)


@pytest.mark.parametrize(
    "solution",
    [
        None,
        "",
        [],
        {},
        {"target_id": [1]},
        {"target_id": [1], "target_box": []},
        {"target_id": [91], "target_box": [[0, 0, 1, 1]]},
        {"target_id": [0], "target_box": [[0, 0, 1, 1]]},
        {"target_id": [1], "target_box": [[0, 0, 1]]},
        {"target_id": [1], "target_box": [[1, 0, 0, 1]]},
    ],
)
def test_solutions_of_another_form_are_refused(solution: Any) -> None:
    result = score("pr1_detection", boxes(PERSON), solution)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert result.detail.startswith("solution for task pr1_detection: ")


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.booleans(), st.sampled_from([TRUTH, NOTHING]))
def test_any_text(response: str, bug_compatible: bool, solution: Any) -> None:
    for text in (response, f"[{response}]", f"[{boxes(PERSON, DOG)[1:-1]},{response}]"):
        check_any_text("pr1_detection", text, solution, 0, 3, bug_compatible=bug_compatible)


NUMBERS = st.integers(-5, 400) | st.floats() | st.integers(0, 10**400)
BOXES = st.lists(NUMBERS, min_size=4, max_size=4) | st.lists(st.integers(0, 400), min_size=4, max_size=4).map(sorted)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(BOXES, st.sampled_from(["person", "dog", "toothbrush", None]))), st.booleans())
def test_any_boxes(labelled: list[Labelled], bug_compatible: bool) -> None:
    for truth in (TRUTH, NOTHING):
        check_any_text("pr1_detection", boxes(*labelled), truth, 0, 3, bug_compatible=bug_compatible)
    result = score("pr1_detection", boxes(PERSON, DOG, *labelled), TRUTH)
    assert result.reward is not None
    assert result.reward <= 3


def test_boxes_beyond_single_precision_are_matched_with_nothing() -> None:
    check_both("pr1_detection", boxes(([-1e60, 0, 1e60, 1e60], "person")), TRUTH, 0.25, 0.25)


def test_too_many_boxes() -> None:
    result = score("pr1_detection", boxes(*[PERSON] * 1001), TRUTH)
    assert (result.outcome, result.detail) == (Outcome.INVALID_OUTPUT, "more than 1000 boxes")
