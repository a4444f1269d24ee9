"""Scorers that fail in the ways scorers fail, as tasks of a registry for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from mmr1_reward_server.api import Example, Item, Outcome, Result
from mmr1_reward_server.registry import Params, Registry, Sample, Task, Verdict
from mmr1_reward_server.rewards import builtin_tasks


def task_of(name: str, score: Callable[[Sample[Any, Params]], Verdict]) -> Task[Any, Params]:
    item = Item(id="1", task=name, response="", solution=None)
    example = Example(item=item, result=Result(id="1", outcome=Outcome.OK, reward=0.0))
    return Task(name, "", "", 0.0, TypeAdapter(Any), Params, score, example)


def _sleeps(sample: Sample[Any, Params]) -> Verdict:
    """Takes as many seconds as the solution says."""
    time.sleep(sample.solution)
    return Verdict(1.0)


def _raises(sample: Sample[Any, Params]) -> Verdict:
    raise RuntimeError(f"cannot judge {sample.response}\nat all \ud800")


def failing_tasks() -> Registry:
    return Registry(
        [
            *builtin_tasks(),
            task_of("sleeps", _sleeps),
            task_of("raises", _raises),
            task_of("nan", lambda _: Verdict(float("nan"))),
            task_of("infinite_component", lambda _: Verdict(1.0, {"x": float("inf")})),
            task_of("unspeakable", lambda _: Verdict(1.0, parsed=object())),  # type: ignore[arg-type]
        ]
    )


def item(task: str, response: str = "<answer>3</answer>", solution: Any = 3, name: str = "1") -> Item:
    return Item(id=name, task=task, response=response, solution=solution)
