"""The tasks: their examples, their formulas, what they refuse."""

# ruff: noqa: RUF001 (full-width digits are what is tested)

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.registry import Registry, Task
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.rewards.counting import COUNTING
from mmr1_reward_server.scoring import score_item

TASKS = builtin_tasks()


def score(task: str, response: str, solution: Any = None, **params: Any) -> Result:
    item = Item(id="1", task=task, response=response, solution=solution, params=params)
    return score_item(TASKS, item, max_response_chars=1000)


@pytest.mark.parametrize("task", list(TASKS), ids=lambda task: task.name)
def test_example_is_what_the_server_answers(task: Task[Any, Any]) -> None:
    assert score_item(TASKS, task.example.item, max_response_chars=1000) == task.example.result
    assert task.example.item.task == task.name
    assert task.info().name == task.name


@pytest.mark.parametrize(
    ("response", "solution", "exact", "graded"),
    [
        ("<answer>3</answer>", 3, 1, 1),
        ("<answer> three </answer>", "3", 1, 1),
        ("I count 2 and 1, so <answer>3 digits</answer>", "３", 1, 1),
        ("2 here, 1 there: 3", 3, 1, 1),
        ("<answer>3.0</answer>", 3.0, 1, 1),
        ("<answer>1,234</answer>", "1,234", 1, 1),
        ("<answer>2</answer>", 4, 0, 0.5),
        ("<answer>5</answer>", 4, 0, 0.75),
        ("<answer>9</answer>", 4, 0, 0),
        ("<answer>-4</answer>", 4, 0, 0),
        ("<answer>3.5</answer>", 4, 0, 0.875),
        ("<answer>0</answer>", 0, 1, 1),
        ("<answer>1</answer>", 0, 0, 0),
        ("<answer>3 3</answer>", 3, 1, 1),
    ],
)
def test_counting(response: str, solution: Any, exact: float, graded: float) -> None:
    assert score("counting", response, solution).reward == exact
    assert score("counting", response, solution, score="exact").reward == exact
    result = score("counting", response, solution, score="graded")
    assert (result.outcome, result.reward) == (Outcome.OK, graded)
    assert result.components == {"exact": exact, "graded": graded}


@pytest.mark.parametrize(
    "response",
    ["", "no idea", "<answer></answer>", "<answer>2 or 3</answer>", "<answer>twenty-one</answer>", "<think>3"],
)
def test_counting_finds_nothing_to_score(response: str) -> None:
    result = score("counting", response, 3)
    assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, COUNTING.floor)
    assert result.detail


@pytest.mark.parametrize("solution", [None, -1, "-1", 2.5, "2.5", True, "", "many", [3], {"count": 3}, 10**15, "3 4"])
def test_counting_refuses_solutions_that_are_no_counts(solution: Any) -> None:
    result = score("counting", "<answer>3</answer>", solution)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert result.detail.startswith("solution for task counting: must be")


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_graded_is_bounded_and_one_only_when_exact(predicted: int, true: int) -> None:
    result = score("counting", f"<answer>{predicted}</answer>", true, score="graded")
    assert result.reward is not None and COUNTING.floor <= result.reward <= 1
    assert (result.reward == 1) == (predicted == true)


@pytest.mark.parametrize(
    ("response", "answer", "think_answer"),
    [
        ("<answer>3</answer>", 1, 0),
        ("  <answer>3</answer>\n", 1, 0),
        ("<answer>several\nlines</answer>", 1, 0),
        ("<think>hm</think>\n<answer>3</answer>", 1, 1),
        ("<think></think><answer>3</answer>", 1, 1),
        ("<answer></answer>", 0, 0),
        ("<answer> </answer>", 0, 0),
        ("<answer>3", 0, 0),
        ("3</answer>", 0, 0),
        ("3", 0, 0),
        ("", 0, 0),
        ("so <answer>3</answer>", 0, 0),
        ("<answer>3</answer>.", 0, 0),
        ("<answer>3</answer><answer>3</answer>", 0, 0),
        ("<answer><answer>3</answer></answer>", 0, 0),
        ("<answer>3<think>hm</think></answer>", 0, 0),
        ("<answer>3</answer><think>hm</think>", 0, 0),
        ("<think>hm <answer>3</answer></think>", 0, 0),
        ("<think>hm <answer>3</think></answer>", 0, 0),
        ("<think>a</think><think>b</think><answer>3</answer>", 0, 0),
        ("<think>a</think> so <answer>3</answer>", 0, 0),
        ("<think>a<answer>3</answer>", 0, 0),
        ("a</think><answer>3</answer>", 0, 0),
        ("<ANSWER>3</ANSWER>", 0, 0),
    ],
)
def test_format(response: str, answer: float, think_answer: float) -> None:
    assert score("format", response).reward == answer
    assert score("format", response, style="answer").reward == answer
    result = score("format", response, style="think_answer")
    assert (result.outcome, result.reward) == (Outcome.OK, think_answer)
    assert result.parsed == {"well_formed": think_answer == 1}


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "3", " "])).map("".join))
def test_format_accepts_only_one_layout(response: str) -> None:
    reward = score("format", response).reward
    if reward == 1:
        assert response.strip().endswith("</answer>") and response.count("<answer>") == response.count("</answer>") == 1
        before = response.strip().partition("<answer>")[0]
        assert before == "" or (before.startswith("<think>") and before.rstrip().endswith("</think>"))
    assert not (reward == 0 and score("format", response, style="think_answer").reward == 1)


def test_unknown_task_names_the_nearest() -> None:
    result = score("countng", "3", 3)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert "did you mean 'counting'?" in result.detail


@pytest.mark.parametrize("task", ["counting", "format"])
def test_overlong_response_is_the_models_fault(task: str) -> None:
    result = score(task, "<answer>" + "3" * 1000 + "</answer>", 3)
    assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, TASKS[task].floor)
    assert "1017 characters, the limit is 1000" in result.detail


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two tasks are called counting"):
        Registry([COUNTING, COUNTING])


@given(st.sampled_from(["counting", "format"]), st.text(), st.none() | st.integers() | st.floats() | st.text())
def test_no_item_raises(task: str, response: str, solution: Any) -> None:
    result = score(task, response, solution)
    if result.reward is not None:
        assert TASKS[task].floor <= result.reward <= 1
    result.model_dump_json()
