"""All presets together: what each says of itself, and how long texts made to slow a parser take."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mmr1_reward_server.registry import Task
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.rewards.presets import PRESETS
from mmr1_reward_server.rewards.presets.reading import read_json, read_list, read_literal
from tests.unit.reward_server.reward_presets import PIECES, check_any_text

NAMES = [
    *("mmr1_ocr", "mmr1_grounding", "pr1_grounding", "pr1_counting", "pr1_detection"),
    *("vlmr1_iou", "vlmr1_weighted_sum", "vlmr1_od_ap", "r1v_accuracy"),
]


def test_all_are_served() -> None:
    assert [task.name for task in PRESETS] == NAMES
    assert all(name in builtin_tasks() for name in NAMES)


@pytest.mark.parametrize("task", PRESETS, ids=lambda task: task.name)
def test_each_tells_of_its_bugs(task: Task[Any, Any]) -> None:
    info = task.info()
    assert "bug_compatible: " in info.summary
    assert info.params_schema["properties"]["bug_compatible"]["default"] is False


@pytest.mark.parametrize("task", PRESETS, ids=lambda task: task.name)
def test_long_hostile_texts_take_linear_time(task: Task[Any, Any]) -> None:
    solution = task.example.item.solution
    check_any_text(task.name, "<answer>3</answer>", solution, -1, 2)  # imports what the first call imports
    for piece in (*PIECES, "[1, 2, 3, ", "(1,2),", "<answer>```json[", "<answer>x\n", "```json ```", "[[[[[", '"\\'):
        response = piece * (20_000 // len(piece))
        for bug_compatible in (False, True):
            began = time.perf_counter()
            check_any_text(task.name, response, solution, -1, 2, bug_compatible=bug_compatible)
            assert time.perf_counter() - began < 2, piece


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3", 3), ("-3.5", -3.5), ("+.5", 0.5), ("5.", 5), ("1e3", 1000), ("2E-1", 0.2), ("00", 0), ("007.5", 7.5)),
        *(("1e999", float("inf")), ("007", None), ("9" * 400, None), ("1.2.3", None), (".", None), ("", None)),
        *(("--1", None), ("1_0", None), ("nan", None), ("٣", None), ("1 ", None), ("e3", None)),
    ],
)
def test_literals(text: str, value: float | None) -> None:
    assert read_literal(text) == value


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        *(("[1, 2.5]", [1, 2.5]), (" [1,\n2,] ", [1, 2]), ("['1', \"2\"]", [1, 2]), ("[]", []), ("(1, 2)", [1, 2])),
        *(("[1, 2)", None), ("1, 2", None), ("[1 2]", None), ("[,]", None), ("[1,,2]", None), ("[", None), ("", None)),
        *(("[[1]]", None), ("['1\"]", None), (")1(", None)),
    ],
)
def test_lists(text: str, numbers: list[float] | None) -> None:
    assert read_list(text, "[]()") == numbers


def test_json_of_bounded_depth() -> None:
    assert read_json("[" * 16 + "]" * 16) is not None
    assert read_json('["[[[[[[[[[[[[[[[[[[[[", "\\"["]') == ["[[[[[[[[[[[[[[[[[[[[", '"[']
    for text in ("[" * 17 + "]" * 17, "[" * 100_000, '{"a":' * 20 + "1" + "}" * 20, "[1", "", "9" * 5000):
        with pytest.raises(ValueError):
            read_json(text)
