"""True answers as datasets hold them: numbers for texts, lists for texts of them, and what is said of a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import score_item

TASKS = builtin_tasks()


def score(task: str, response: str, solution: Any, **params: Any) -> Result:
    item = Item(id="1", task=task, response=response, solution=solution, params=params)
    return score_item(TASKS, item, max_response_chars=1_000_000)


@pytest.mark.parametrize(
    ("task", "response", "solution"),
    [
        ("accuracy", "<answer>3</answer>", 3),
        ("accuracy", "<answer>3</answer>", 3.0),
        ("accuracy", "<answer>-0.5</answer>", -0.5),
        ("r1v_accuracy", "<answer>3</answer>", 3),
        ("ocr", "42", 42),
        ("ocr", "4.5", ["a", 4.5]),
        ("mmr1_ocr", "42", 42),
    ],
)
def test_a_number_is_a_text_where_a_text_is_the_truth(task: str, response: str, solution: Any) -> None:
    result = score(task, response, solution)
    assert (result.outcome, result.reward) == (Outcome.OK, 1)
    assert score(task, "no such thing", solution).reward in (0, pytest.approx(0, abs=0.2))


@pytest.mark.parametrize("solution", [True, {"a": 1}, None, [["a"]], [True]])
def test_ocr_says_what_a_solution_must_be(solution: Any) -> None:
    assert score("ocr", "a", solution).detail.endswith("must be a text or a list of texts")


@pytest.mark.parametrize("true", ["A. cat", "(A) cat", "A) cat"])
def test_a_truth_may_repeat_what_its_option_says(true: str) -> None:
    for response, reward in (("<answer>A</answer>", 1), ("The answer is (A).", 1), (true, 1), ("B. dog", 0)):
        assert score("accuracy", response, true).reward == reward


@pytest.mark.parametrize(
    ("response", "count"),
    [
        (r"The count is \boxed{3}. I double-checked it 2 times.", 3),
        (r"<answer>There are \boxed{3}</answer>", 3),
        ("There are three dogs and this one is brown.", 3),
        ("There is one dog.", 1),
        ("One dog and 3 cats", 3),
    ],
)
def test_a_count_in_prose(response: str, count: int) -> None:
    assert score("counting", response, count).reward == 1


def test_between_tags_one_is_a_number_beside_others() -> None:
    assert score("counting", "<answer>one or two</answer>", 2).outcome is Outcome.INVALID_OUTPUT


@pytest.mark.parametrize("task", ["pr1_grounding", "mmr1_grounding"])
def test_a_box_may_be_a_list(task: str) -> None:
    box = [100, 200, 300, 400]
    as_list, as_text = (score(task, "[100, 200, 300, 400]", one, bug_compatible=False) for one in (box, str(box)))
    assert as_list == as_text and as_list.outcome is Outcome.OK
    for wrong in ([1, 2, 3], [3, 0, 1, 1], ["a", 0, 1, 1], [True]):
        assert score(task, "[1, 2, 3, 4]", wrong).outcome is Outcome.VERIFIER_ERROR


@pytest.mark.parametrize("task", ["grounding", "detection", "counting"])
def test_the_text_of_a_list_is_one(task: str) -> None:
    true = {"detection": '[{"bbox_2d": [0, 0, 9, 9], "label": "dog"}]', "counting": "[[1, 2]]"}.get(
        task, "[0, 0, 9, 9]"
    )
    params = {"score": "matching"} if task == "counting" else {}
    item = Item(id="1", task=task, response=true, solution=true, params=params, image_size=(100, 100))
    assert score_item(TASKS, item, max_response_chars=1_000).reward == 1


@pytest.mark.parametrize(
    ("task", "solution"),
    [("pr1_counting", "[(100, 100)]"), ("pr1_detection", "{'target_id': [18], 'target_box': [[0, 0, 9, 9]]}")],
)
def test_a_solution_that_python_printed_is_told_what_to_be(task: str, solution: str) -> None:
    assert "must be JSON, such as" in score(task, "", solution).detail


def test_small_boxes_may_count_more() -> None:
    response = '[{"bbox_2d": [0, 0, 10, 8], "label": "dog"}, {"bbox_2d": [0, 0, 100, 100], "label": "cat"}]'
    solution = {"target_id": [18, 17], "target_box": [[0, 0, 10, 10], [0, 0, 100, 100]]}
    for bug_compatible, expected in ((False, 3.4 / 4), (True, 3.4 / (1.8 * 2))):
        result = score("pr1_detection", response, solution, is_size_weight=True, bug_compatible=bug_compatible)
        assert result.components["iou"] == pytest.approx(expected)
    assert score("pr1_detection", response, solution).components["iou"] == pytest.approx(0.9)


def test_texts_that_would_take_too_long_are_not_compared() -> None:
    long = "a" * 90_000
    assert score("ocr", "a", [long] * 64).outcome is Outcome.VERIFIER_ERROR
    assert score("ocr", long * 2, long).outcome is Outcome.INVALID_OUTPUT
    assert score("ocr", "a" * 1_000, ["a" * 1_000] * 64).reward == 1
