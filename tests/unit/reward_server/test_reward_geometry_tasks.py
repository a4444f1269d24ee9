"""grounding, counting by place and detection: their formulas on cases, and what must hold for all boxes."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.explaining import Pair, explain
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import score_item

TASKS = builtin_tasks()
TRUE_BOX = [0, 0, 100, 100]


def score(task: str, response: str, solution: Any, image_size: Any = None, **params: Any) -> Result:
    item = Item(id="1", task=task, response=response, solution=solution, params=params, image_size=image_size)
    return score_item(TASKS, item, max_response_chars=100_000)


def answer(regions: object) -> str:
    return f"<answer>{json.dumps(regions)}</answer>"


@pytest.mark.parametrize(
    ("box", "iou", "giou"),
    [
        ([0, 0, 100, 100], 1, 1),
        ([0, 0, 50, 100], 0.5, 0.5),
        ([0, 0, 100, 49], 0.49, 0.49),
        ([200, 0, 300, 100], 0, -1 / 3),
        ([100, 100, 0, 0], 0, -1),
        ([50, 50, 50, 50], 0, 0),
    ],
)
@pytest.mark.parametrize("solution", [TRUE_BOX, [TRUE_BOX]])
def test_grounding(box: list[float], iou: float, giou: float, solution: Any) -> None:
    components = {"iou": iou, "iou_squared": iou**2, "giou": giou, "threshold": float(iou >= 0.5)}
    for name, reward in components.items():
        result = score("grounding", answer([{"bbox_2d": box}]), solution, score=name)
        assert (result.outcome, result.reward) == (Outcome.OK, pytest.approx(reward))
        assert result.components == pytest.approx(components)
        assert result.parsed == {"bbox_2d": box}
    assert score("grounding", answer(box), solution, score="threshold", threshold=0.49).reward == float(iou >= 0.49)


def test_grounding_takes_the_last_box_of_free_text_and_only_one_within_tags() -> None:
    assert score("grounding", "not [5,5,6,6] but [0,0,100,100]", TRUE_BOX).reward == 1
    assert score("grounding", "<think>[5,5,6,6]</think>(0,0),(100,100)", TRUE_BOX).reward == 1
    assert score("grounding", answer([TRUE_BOX, TRUE_BOX]), TRUE_BOX).reward == 1
    several = score("grounding", answer([TRUE_BOX, [5, 5, 6, 6]]), TRUE_BOX)
    assert (several.outcome, several.reward) == (Outcome.INVALID_OUTPUT, 0)
    assert "2 different boxes between the answer tags" in several.detail


@pytest.mark.parametrize("response", ["", "no", "<answer>[1,2,3]</answer>", "<answer>(1,2)</answer>", "[" * 1000])
@pytest.mark.parametrize(("kind", "floor"), [("iou", 0), ("iou_squared", 0), ("threshold", 0), ("giou", -1)])
def test_the_floor_of_grounding_is_that_of_its_score(response: str, kind: str, floor: float) -> None:
    result = score("grounding", response, TRUE_BOX, score=kind)
    assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, floor)
    overlong = score("grounding", "x" * 100_001, TRUE_BOX, score=kind)
    assert (overlong.outcome, overlong.reward) == (Outcome.INVALID_OUTPUT, floor)


def test_the_floor_that_is_listed_is_that_of_default_params() -> None:
    task = TASKS["grounding"]
    assert task.info().floor == task.floor_with(task.params()) == 0


@pytest.mark.parametrize(
    "solution", [None, [], [TRUE_BOX, TRUE_BOX], [1, 2, 3], "[1, 2]", [5, 5, 5, 9], [True, 0, 9, 9]]
)
def test_grounding_refuses_solutions_that_are_no_box(solution: Any) -> None:
    result = score("grounding", answer(TRUE_BOX), solution)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert result.detail.startswith("solution for task grounding: must be a box [x1, y1, x2, y2]")


def test_spaces_are_those_declared() -> None:
    spaces = {"response_space": "normalized_1000", "solution_space": "absolute"}
    assert score("grounding", answer([0, 0, 500, 1000]), [0, 0, 320, 480], (640, 480), **spaces).reward == 1
    resized = score("grounding", answer([0, 0, 50, 50]), [0, 0, 100, 150], (200, 300), resized_size=[100, 100])
    assert resized.reward == 1
    missing = score("grounding", answer([0, 0, 500, 1000]), [0, 0, 320, 480], **spaces)
    assert missing.outcome is Outcome.VERIFIER_ERROR and "send image_size" in missing.detail
    wrong = score("grounding", answer(TRUE_BOX), TRUE_BOX, response_space="normalized_1", solution_space="normalized_1")
    assert wrong.outcome is Outcome.VERIFIER_ERROR and "solution_space is normalized_1" in wrong.detail
    ours = score("grounding", "no box", [0, 0, 320, 480], **spaces)  # our own omission shows even then
    assert ours.outcome is Outcome.VERIFIER_ERROR


GRID = (1000, 1000)
THREE = [[100, 100], [500, 500], [900, 100]]


@pytest.mark.parametrize(
    ("predicted", "true", "reward"),
    [  # on the grid of a thousand, as Perception-R1 gives them
        (THREE, THREE, 1),
        (THREE[::-1], THREE, 1),
        (THREE[:2], THREE, 2 / 3),
        ([*THREE, [900, 900]], THREE, 0.75),
        ([[200, 100], *THREE[1:]], THREE, 0.976430),
        ([], [], 1),
        ([], THREE, 0),
        (THREE, [], 0),
        ([[100_000, 0]], [[0, 0]], 0),
        ([{"point_2d": [100, 100]}, [400, 400, 600, 600], {"bbox_2d": [800, 0, 1000, 200]}], THREE, 1),
        (THREE, [[100, 100], [400, 400, 600, 600], [900, 100]], 1),
    ],
)
def test_counting_by_matching(predicted: Any, true: Any, reward: float) -> None:
    result = score("counting", answer(predicted), true, GRID, score="matching")
    assert (result.outcome, result.reward) == (Outcome.OK, pytest.approx(reward, abs=1e-6))
    assert (result.components["num_predicted"], result.components["num_true"]) == (len(predicted), len(true))


def test_counting_measures_pixels() -> None:
    # Half the width of 300 and half the height of 400 off, of a diagonal of 500.
    result = score(
        "counting", answer([[0, 0]]), [[0.5, 0.5]], (300, 400), score="matching", solution_space="normalized_1"
    )
    assert (result.reward, result.components["mean_distance"]) == (0.5, 250)


def test_counting_takes_the_solution_that_its_score_compares() -> None:
    for kind in ("exact", "graded"):
        result = score("counting", "<answer>3</answer>", THREE, score=kind)
        assert result.outcome is Outcome.VERIFIER_ERROR and "score matching for a list" in result.detail
    result = score("counting", answer(THREE), 3, GRID, score="matching")
    assert result.outcome is Outcome.VERIFIER_ERROR and "send a list of points" in result.detail
    result = score("counting", answer(THREE), THREE, score="matching")
    assert result.outcome is Outcome.VERIFIER_ERROR and "[1000, 1000]" in result.detail
    result = score("counting", answer(THREE), [[1, 2], [3]], GRID, score="matching")
    assert result.outcome is Outcome.VERIFIER_ERROR and "number 1 of the list must be a point" in result.detail
    result = score("counting", "three dogs", THREE, GRID, score="matching")
    assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, 0)


DOG, CAT = {"bbox_2d": [0, 0, 100, 100], "label": "dog"}, {"bbox_2d": [200, 0, 300, 100], "label": "cat"}
HALF_DOG = {"bbox_2d": [0, 0, 100, 60], "label": "dog"}
NAMES = ("f1", "mean_iou", "label", "missing", "redundant")


def swapped(*objects: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**one, "label": "cat" if one["label"] == "dog" else "dog"} for one in objects]


@pytest.mark.parametrize(
    ("predicted", "true", "match_labels", "components"),
    [
        ([DOG, CAT], [DOG, CAT], True, (1, 1, 1, 0, 0)),
        ([CAT, DOG], [DOG, CAT], True, (1, 1, 1, 0, 0)),
        ([{**DOG, "label": " DOG "}], [DOG], True, (1, 1, 1, 0, 0)),
        ([DOG], [DOG, CAT], True, (2 / 3, 0.5, 0.5, 0.5, 0)),
        ([DOG, CAT, CAT], [DOG, CAT], True, (0.8, 1, 1, 0, 1 / 3)),
        ([HALF_DOG, CAT], [DOG, CAT], True, (1, 0.8, 1, 0, 0)),
        ([HALF_DOG, DOG], [DOG], True, (2 / 3, 1, 1, 0, 0.5)),
        (swapped(DOG, CAT), [DOG, CAT], True, (0, 0, 0, 1, 1)),
        (swapped(DOG, CAT), [DOG, CAT], False, (1, 1, 0, 0, 0)),
        ([*swapped(DOG), DOG], [DOG], False, (2 / 3, 1, 1, 0, 0.5)),  # of two equal boxes, the one of the right label
        ([DOG, *swapped(DOG)], [DOG], False, (2 / 3, 1, 1, 0, 0.5)),
        ([DOG["bbox_2d"]], [DOG], True, (0, 0, 0, 1, 1)),
        ([DOG["bbox_2d"]], [DOG], False, (1, 1, 0, 0, 0)),
        ([DOG["bbox_2d"]], [{"bbox": DOG["bbox_2d"]}], True, (1, 1, 1, 0, 0)),
        ([{"bbox": [100, 100, 0, 0], "label": "dog"}], [DOG], True, (0, 0, 0, 1, 1)),
        ([], [DOG], True, (0, 0, 0, 1, 0)),
        ([DOG], [], True, (0, 0, 0, 0, 1)),
        ([], [], True, (1, 1, 1, 0, 0)),
    ],
)
def test_detection(predicted: Any, true: Any, match_labels: bool, components: tuple[float, ...]) -> None:
    weights = {"f1": 1, "mean_iou": 2, "label": 3, "missing": 4, "redundant": 5}
    result = score("detection", answer(predicted), true, match_labels=match_labels, weights=weights)
    assert result.outcome is Outcome.OK
    assert tuple(result.components[name] for name in NAMES) == pytest.approx(components)
    f1, mean_iou, label, missing, redundant = components
    weighted = (f1 + 2 * mean_iou + 3 * label + 4 * (1 - missing) + 5 * (1 - redundant)) / 15
    assert result.reward == pytest.approx(weighted if f1 > 0 else 0)
    assert result.reward == result.components["weighted"]
    by_f1 = score("detection", answer(predicted), true, match_labels=match_labels, score="f1")
    assert by_f1.reward == pytest.approx(f1)
    assert by_f1.components["weighted"] == pytest.approx((f1 + mean_iou) / 2)
    assert result.components["num_predicted"] == len(predicted) and result.components["num_true"] == len(true)


CROWD = {"bbox_2d": [0, 0, 400, 400], "label": "dog", "iscrowd": 1}
INNER = {"bbox_2d": [10, 10, 60, 60], "label": "dog"}
AWAY = {"bbox_2d": [500, 500, 600, 600], "label": "dog"}


@pytest.mark.parametrize(
    ("predicted", "true", "counts"),  # matched, predicted, true
    [
        ([INNER, AWAY], [CROWD, AWAY], (1, 1, 1)),
        ([INNER, INNER, AWAY], [CROWD, AWAY], (1, 1, 1)),
        ([INNER, AWAY], [CROWD, INNER, AWAY], (2, 2, 2)),  # an object goes before the crowd that it stands in
        ([INNER], [CROWD], (0, 0, 0)),
        ([], [CROWD], (0, 0, 0)),
        ([AWAY], [CROWD], (0, 1, 0)),
        ([{**INNER, "label": "cat"}], [CROWD], (0, 1, 0)),
        ([{**INNER, "bbox_2d": [360, 0, 440, 10]}], [CROWD], (0, 0, 0)),  # half of it
        ([{**INNER, "bbox_2d": [361, 0, 441, 10]}], [CROWD], (0, 1, 0)),
        ([{**INNER, "bbox_2d": [60, 60, 10, 10]}], [CROWD], (0, 1, 0)),  # no box
        ([INNER], [{**CROWD, "iscrowd": True}], (0, 0, 0)),
        ([INNER], [{**CROWD, "iscrowd": 0}], (0, 1, 1)),
        ([INNER], [{**CROWD, "iscrowd": False}], (0, 1, 1)),
    ],
)
def test_what_is_found_in_a_crowd_counts_neither_way(predicted: Any, true: Any, counts: tuple[int, int, int]) -> None:
    result = score("detection", answer(predicted), true, score="f1")
    found = tuple(int(result.components[name]) for name in ("num_matched", "num_predicted", "num_true"))
    assert found == counts and len(result.parsed) == len(predicted)
    matched, num_predicted, num_true = counts
    assert result.reward == pytest.approx(2 * matched / (num_predicted + num_true) if num_predicted + num_true else 1.0)
    assert ("in crowds" in result.detail) == (len(predicted) > num_predicted)


def test_a_crowd_without_labels_to_match_and_what_is_none() -> None:
    cat = answer([{**INNER, "label": "cat"}])
    assert score("detection", cat, [CROWD], score="f1", match_labels=False).reward == 1.0
    refused = score("detection", cat, [{**CROWD, "iscrowd": 2}])
    assert refused.outcome is Outcome.VERIFIER_ERROR and "iscrowd" in refused.detail


def test_a_crowd_before_an_object_does_not_take_its_place() -> None:
    item = Item(id="1", task="detection", response=answer([INNER, AWAY]), solution=[CROWD, AWAY], params={})
    pairs = explain(TASKS, item, max_response_chars=1000).pairs
    assert pairs == [Pair(predicted=1, true=1, iou=1.0)]


def test_detection_matches_at_its_threshold() -> None:
    assert score("detection", answer([HALF_DOG]), [DOG], iou_threshold=0.6, score="f1").reward == 1
    assert score("detection", answer([HALF_DOG]), [DOG], iou_threshold=0.61, score="f1").reward == 0


def test_detection_of_a_response_that_was_cut_off() -> None:
    text = json.dumps([DOG, CAT])
    result = score("detection", text[:-5], [DOG, CAT], score="f1")
    assert (result.outcome, result.reward) == (Outcome.OK, pytest.approx(2 / 3))
    assert "cut off" in result.detail
    nothing = score("detection", text[:20], [DOG, CAT])
    assert (nothing.outcome, nothing.reward) == (Outcome.INVALID_OUTPUT, 0) and "cut off" in nothing.detail


@pytest.mark.parametrize("response", ["", "I see none", "<answer>{}</answer>", answer([[1, 2, 3, 4]] * 1001)])
def test_detection_finds_nothing_to_score(response: str) -> None:
    for true in ([], [DOG]):
        result = score("detection", response, true)
        assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, 0)


@pytest.mark.parametrize(
    ("solution", "params"),
    [
        (None, {}),
        (DOG, {}),
        ([[0, 0, 1, 1]], {}),
        ([{"label": "dog"}], {}),
        ([{**DOG, "bbox": [0, 0, 1, 1]}], {}),
        ([{"bbox": [0, 0, 0, 1]}], {}),
        ([{**DOG, "lable": "dog"}], {}),
        ([DOG], {"weights": dict.fromkeys(NAMES, 0)}),
        ([DOG], {"weights": {"f1": -1}}),
        ([DOG], {"weights": {"recall": 1}}),
        ([DOG], {"iou_threshold": 0}),
        ([DOG], {"score": "map"}),
        ([DOG], {"response_space": "normalized_1"}),
    ],
)
def test_detection_refuses_what_it_cannot_score(solution: Any, params: dict[str, Any]) -> None:
    result = score("detection", answer([DOG]), solution, **params)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)


boxes = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40)).map(
    lambda at: [at[0], at[1], at[0] + at[2], at[1] + at[3]]
)
objects = st.fixed_dictionaries({"bbox_2d": boxes, "label": st.sampled_from(["dog", "cat"])})
some_objects = st.lists(objects, max_size=6)


@given(some_objects, some_objects, st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_detection_is_bounded_and_knows_no_order(
    predicted: Any, true: Any, match_labels: bool, shuffle: random.Random
) -> None:
    result = score("detection", answer(predicted), true, match_labels=match_labels)
    assert result.reward is not None and 0 <= result.reward <= 1
    assert all(0 <= result.components[name] <= 1 for name in NAMES)
    other = score(
        "detection",
        answer(shuffle.sample(predicted, len(predicted))),
        shuffle.sample(true, len(true)),
        match_labels=match_labels,
    )
    assert other.components == pytest.approx(result.components, abs=1e-6)
    assert score("detection", answer(true), true).reward == pytest.approx(1)


@given(some_objects, some_objects)
@settings(max_examples=50, deadline=None)
def test_the_space_changes_no_reward(predicted: Any, true: Any) -> None:
    def on_grid(found: dict[str, Any]) -> dict[str, Any]:
        x1, y1, x2, y2 = found["bbox_2d"]
        return {**found, "bbox_2d": [x1 / 0.1, y1 / 0.2, x2 / 0.1, y2 / 0.2]}

    plain = score("detection", answer(predicted), true)
    in_thousands = score(
        "detection", answer([on_grid(one) for one in predicted]), true, (100, 200), response_space="normalized_1000"
    )
    assert in_thousands.components == pytest.approx(plain.components)


points = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)).map(list), max_size=6)


@given(points, points, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_counting_by_matching_is_bounded_and_knows_no_order(predicted: Any, true: Any, shuffle: random.Random) -> None:
    reward = score("counting", answer(predicted), true, (100, 100), score="matching").reward
    assert reward is not None and 0 <= reward <= 1
    other = answer(shuffle.sample(predicted, len(predicted)))
    assert score("counting", other, shuffle.sample(true, len(true)), (100, 100), score="matching").reward == (
        pytest.approx(reward)
    )
    assert score("counting", answer(true), true, (100, 100), score="matching").reward == 1


@given(
    st.text()
    | st.lists(st.sampled_from([*"[]{}(),:\"'1-. ", "[1,2,3,4]", '"bbox":', "<answer>", "</answer>"])).map("".join)
)
@settings(max_examples=100, deadline=None)
def test_any_response_gets_a_reward(response: str) -> None:
    for task, solution, params, floor in (
        ("grounding", TRUE_BOX, {"score": "giou"}, -1),
        ("grounding", TRUE_BOX, {}, 0),
        ("detection", [DOG, CAT], {}, 0),
        ("counting", THREE, {"score": "matching"}, 0),
    ):
        result = score(task, response, solution, GRID, **params)
        assert result.reward is not None and floor <= result.reward <= 1
        assert result.outcome in (Outcome.OK, Outcome.INVALID_OUTPUT)
        result.model_dump_json()


@pytest.mark.parametrize(
    ("task", "response", "solution", "params"),
    [
        ("grounding", "[1, 2, 3, 4]", [1, 2, 3, 4], {}),
        ("grounding", "[1, 2, 3, 4]", [[1, 2, 3, 4]], {}),
        ("detection", '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]', [{"bbox": [1, 2, 3, 4], "label": "a"}], {}),
        ("counting", "(1, 2), (3, 4)", [[1, 2], [3, 4]], {"score": "matching"}),
    ],
)
def test_a_solution_may_be_json_text(task: str, response: str, solution: Any, params: dict[str, Any]) -> None:
    """Some clients can send nothing but a text as label."""
    for written in (solution, json.dumps(solution)):
        item = Item(id="1", task=task, response=response, solution=written, params=params, image_size=(10, 10))
        assert score_item(builtin_tasks(), item, max_response_chars=100).reward == 1.0
    for broken in ("[1, 2", "[" * 100_000, "no box"):
        item = Item(id="1", task=task, response=response, solution=broken, params=params, image_size=(10, 10))
        assert score_item(builtin_tasks(), item, max_response_chars=100).outcome is Outcome.VERIFIER_ERROR
