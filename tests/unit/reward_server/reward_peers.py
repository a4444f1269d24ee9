"""The peers' routes over tasks and scoring that tests control."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import httpx
import scipy.optimize  # noqa: F401  # imported when a task first needs it, which must not count against an item here
from fastapi import FastAPI

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.dialects.defaults import Defaults
from mmr1_reward_server.errors import add_error_handlers
from mmr1_reward_server.parsing import find_answer
from mmr1_reward_server.registry import InvalidOutput, Params, Registry, Sample, Task, Verdict
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import Overloaded, Scored, Scoring
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_scorers import task_of


def _equality(sample: Sample[Any, Params]) -> Verdict:
    answer = find_answer(sample.response).text.strip()
    if not answer:
        raise InvalidOutput("nothing is answered")
    right = answer == str(sample.solution)
    return Verdict(1.0 if right else 0.25, {"equal": float(right)}, answer, f"read {answer}")


def _hangs(sample: Sample[Any, Params]) -> Verdict:
    time.sleep(1.5)
    return Verdict(1.0)


def _raises(sample: Sample[Any, Params]) -> Verdict:
    raise RuntimeError("out of order")


def peer_tasks() -> Registry:
    """counting and format as they are; accuracy, ocr, detection by equality; below_zero with a floor of -1."""
    own: list[Task[Any, Any]] = [
        *(task_of(name, _equality) for name in ("accuracy", "ocr", "detection")),
        replace(task_of("below_zero", _equality), floor=-1.0),
        task_of("hangs", _hangs),
        task_of("raises", _raises),
    ]
    names = {task.name for task in own}
    return Registry([*(task for task in builtin_tasks() if task.name not in names), *own])


class Scripted:
    """A `Scoring` that goes through steps, one for each call: an outcome for every item, or "overloaded".

    The last step stays. A reward is 0.5, a floor 0.
    """

    def __init__(self, *steps: str, seconds: float = 0.0) -> None:
        self.steps = list(steps)
        self.seconds = seconds
        self.calls: list[list[Item]] = []
        self.num_pending = 0
        self.num_alive = 1
        self.unready: str | None = None

    async def start(self) -> None:
        pass

    async def score(self, items: Sequence[Item]) -> list[Scored]:
        self.calls.append(list(items))
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if step == "overloaded":
            raise Overloaded("9 items are pending")
        await asyncio.sleep(self.seconds)
        outcome = Outcome(step)
        reward = {"ok": 0.5, "invalid_output": 0.0}.get(step)
        components = {"part": 0.5} if outcome is Outcome.OK else {}
        return [
            Scored(Result(id=i.id, outcome=outcome, reward=reward, components=components, detail="why"), 0.01)
            for i in items
        ]

    async def close(self) -> None:
        pass


def peers(
    dialect: ModuleType, scoring: Scoring | None = None, registry: Registry | None = None, **defaults: Any
) -> httpx.AsyncClient:
    """A client of an application that has nothing but this dialect's routes. Its default task is counting.

    `dialect` is one of the package's modules, or the package itself for all of them.
    """
    registry = registry or peer_tasks()
    scoring = scoring or InProcessScoring(registry, deadlines={"hangs": 0.2})
    app = FastAPI()
    add_error_handlers(app)
    told = Defaults(**{"default_task": "counting", **defaults})
    app.include_router(dialect.router(scoring, registry, told))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward")


def refusal(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert "\n" not in error["message"]
    return response.status_code, error["code"]
