"""`--refusals`: which items can never be scored, asked of many at once."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from mmr1_reward_server.refusing import refusals
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import SettingsError
from tests.unit.reward_server.reward_scorers import task_of


def item(task: str, solution: Any, **more: Any) -> dict[str, Any]:
    return {"id": "0", "task": task, "response": "", "solution": solution, **more}


def asked(*lines: str) -> list[list[str | None]]:
    def breaks(_: Any) -> Any:
        raise RuntimeError("not this one")

    registry = Registry([*builtin_tasks(), task_of("breaks", breaks)])
    return [json.loads(line) for line in refusals(registry, lines, max_response_chars=100)]


def test_each_item_has_null_or_a_reason_in_its_place() -> None:
    box = item("grounding", [0, 0, 90, 9], image_size=[8, 8])
    first = [item("counting", 3), item("counting", "many"), box, box | {"image_size": None}, item("breaks", 3)]
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    second = [item("cuonting", 3), item("counting", 3, image_size=[0, 8]), item("counting", deep), 3]
    one, other = asked(json.dumps(first), json.dumps(second))
    assert [reason is None for reason in one] == [True, False, False, True, True]
    assert str(one[1]).startswith("solution for task counting: must be a count")
    assert str(one[2]).startswith("the solution has a coordinate of 90")
    assert str(other[0]) == "no task 'cuonting'; did you mean 'counting'?"
    assert "image_size.0" in str(other[1]) and "nested more than 64" in str(other[2]) and other[3]


def test_a_scorer_that_fails_says_nothing_and_what_others_say_afterwards_is_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert asked(json.dumps([item("breaks", 3)])) == [[None]]
    assert not caplog.records
    logging.getLogger("mmr1_reward_server").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


@pytest.mark.parametrize("line", ["{", "3", '{"id": "0"}'])
def test_a_line_that_is_no_array_is_named(line: str) -> None:
    with pytest.raises(SettingsError, match="--refusals: a line is no"):
        asked(line)


def test_the_program_answers_line_by_line() -> None:
    command = [sys.executable, "-m", "mmr1_reward_server", "--refusals"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as program:  # type: ignore[call-overload]
        for solution, is_right in ((3, True), ("many", False)):
            program.stdin.write(json.dumps([item("counting", solution)]) + "\n")
            program.stdin.flush()
            assert (json.loads(program.stdout.readline()) == [None]) is is_right
        program.stdin.close()
        assert program.wait(30) == 0
