"""A held-out item without a verdict is asked for again; only a row that is wrong itself is a wrong configuration."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmr1.errors import ConfigurationError
from mmr1.evaluation import Judge, judging
from mmr1.records import Problem
from mmr1_reward_server.api import Item, Result
from mmr1_reward_server.app import create_app
from mmr1_reward_server.client import RewardClient, RewardServerError
from mmr1_reward_server.registry import Params, Registry, Sample, Verdict
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_scorers import SLEEPS, task_of


def judge(*items: Item) -> list[Result]:
    """The judge's verdicts, from a reward server whose tasks fail in their ways."""
    calls: Counter[str] = Counter()

    def slow_at_first(sample: Sample[Any, Params]) -> Verdict:
        calls[sample.response] += 1
        time.sleep(0.6 if calls[sample.response] < 3 else 0.0)
        return Verdict(1.0)

    def breaks_on_text(sample: Sample[Any, Params]) -> Verdict:
        if sample.response:
            raise MemoryError("no room now")
        return Verdict(0.0)

    own = [SLEEPS, task_of("slow_at_first", slow_at_first), task_of("breaks_on_text", breaks_on_text)]
    tasks = Registry([*builtin_tasks(), *own])
    problems = [Problem(40 + index, "", 3, (), item.task) for index, item in enumerate(items)]

    async def run() -> list[Result]:
        app = create_app(Settings(), tasks, InProcessScoring(tasks, deadlines={"sleeps": 0.3, "slow_at_first": 0.3}))
        async with RewardClient("http://reward", 30.0, httpx.ASGITransport(app)) as client:
            return await Judge(client, Path("eval.json"), problems).verdicts(items)

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "AGAIN_SECONDS", 0.01)


def item(name: int, task: str, solution: Any = 3) -> Item:
    return Item(id=str(name), task=task, response="<answer>3</answer>", solution=solution)


def test_an_item_that_took_too_long_is_asked_for_again_alone_and_keeps_its_place() -> None:
    verdicts = judge(item(0, "slow_at_first"), item(1, "counting"))
    assert [(verdict.id, verdict.reward) for verdict in verdicts] == [("0", 1.0), ("1", 1.0)]


def test_one_that_always_takes_too_long_is_no_wrong_configuration() -> None:
    with pytest.raises(RewardServerError, match="row 42 has no verdict after 4 tries"):
        judge(item(0, "counting"), item(1, "sleeps", solution=1.0))


def test_a_scorer_that_breaks_is_no_wrong_configuration() -> None:
    with pytest.raises(RewardServerError, match="MemoryError: no room now"):
        judge(item(0, "breaks_on_text"))


@pytest.mark.parametrize("wrong", [item(0, "countnig"), item(0, "counting", solution={"no": "number"})])
def test_a_row_that_no_answer_can_fit_is(wrong: Item) -> None:
    with pytest.raises(ConfigurationError, match=r"eval\.json: row 41 cannot be scored: "):
        judge(wrong)


def test_every_row_is_shown_with_its_image_s_size_and_the_bad_ones_are_listed() -> None:
    """As `judge` sends it: else a box outside its image would be found when answers are there."""
    tasks = Registry(builtin_tasks())

    def check(*solutions: list[int]) -> None:
        problems = [Problem(place, "", solution, ("a.png",), "grounding") for place, solution in enumerate(solutions)]

        async def run() -> None:
            app = create_app(Settings(), tasks, InProcessScoring(tasks))
            async with RewardClient("http://reward", 30.0, httpx.ASGITransport(app)) as client:
                await Judge(client, Path("eval.json"), problems).check_rows([(20, 10)] * len(problems))

        asyncio.run(run())

    inside, outside = [0, 0, 9, 9], [0, 0, 90, 9]
    check(inside, inside)
    with pytest.raises(ConfigurationError) as caught:
        check(*[inside] * 290, *[outside] * 23)
    first, *lines, last = str(caught.value).splitlines()
    assert first == "eval.json: 23 of 313 rows cannot be scored; repair or remove them"
    assert len(lines) == judging.ROWS_SHOWN and last == "and 3 more"
    assert lines[0].startswith("eval.json: row 291 cannot be scored: the solution has a coordinate of 90")
