"""Held-out metrics, measured through the running rollout servers: greedy, and sampled as in training.

What is measured is what serves: the same engine, weights and reward server as the run's. What the metrics are is
`mmr1.evaluation`'s part. A problem that cannot be judged is an error, not a wrong answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from mmr1.config import RunConfig
from mmr1.evaluation import Answer, Judge, TaskResult, measure, metrics_of
from mmr1.records import Group, Problem, Prompt
from mmr1.reward_access import reward_client
from mmr1.rollout_client import RolloutClient
from mmr1_learner.prompts import PromptFactory
from mmr1_learner.spread import generate_everywhere
from mmr1_learner.waiting import Tick, results

log = structlog.get_logger()

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pass over the held-out problems, with the metrics of each task among them."""

    mode: str  # greedy or sampled
    tasks: list[TaskResult]
    temperature: float
    seconds: float


class Evaluator:
    """Evaluates the policy that the rollout servers hold now."""

    def __init__(self, config: RunConfig, prompts: PromptFactory, problems: Sequence[Problem]) -> None:
        self._config = config
        self._prompts = prompts
        self._problems = problems

    def run(self, clients: Sequence[RolloutClient], temperature: float, tick: Tick) -> list[Evaluation]:
        """Greedy, then sampled at `temperature`. `tick` is called all the while; what it raises ends the evaluation.

        Raises:
            ConfigurationError: a row cannot be scored: its solution or task is not what the reward server takes.
            RewardServerError: the reward server does not answer, or cannot judge an item in several tries.
        """
        return [self._one(clients, "greedy", 0.0, tick), self._one(clients, "sampled", temperature, tick)]

    def _one(self, clients: Sequence[RolloutClient], mode: str, temperature: float, tick: Tick) -> Evaluation:
        started = time.monotonic()
        prompts = [
            self._prompts.evaluation(index, problem, temperature) for index, problem in enumerate(self._problems)
        ]
        groups = generate_everywhere(clients, prompts, tick)
        tasks = _in_thread(lambda: self._measure(groups), tick)
        return Evaluation(mode, tasks, temperature, time.monotonic() - started)

    def _measure(self, groups: Sequence[Group]) -> list[TaskResult]:
        return measure(asyncio.run(self._judge(groups)), seed=self._config.seed)

    async def _judge(self, groups: Sequence[Group]) -> list[Answer]:
        async with reward_client(self._config, self._config.reward_deadline_seconds) as client:
            judge = Judge(client, self._config.eval_file, self._problems)
            return await judge.judge(groups, range(len(groups)), [self._size(group.prompt) for group in groups])

    def _size(self, prompt: Prompt) -> tuple[int, int] | None:
        return self._prompts.image_size(prompt) if metrics_of(prompt.task).takes_size else None


def evaluation_records(name: str, step: int, version: str, found: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The lines of evaluations.jsonl: one for each mode and task, written at once. `name` is before, step or after.

    `seconds` is the task's share of the pass, by its number of problems; `accuracy` is null for a task that has none.
    """
    records = []
    for result in found:
        total = sum(task.num_problems for task in result.tasks)
        for task in result.tasks:
            records.append(
                {
                    "name": name,
                    "step": step,
                    "mode": result.mode,
                    **task.as_json(),
                    "n": task.num_problems,
                    "accuracy": task.accuracy,
                    "temperature": result.temperature,
                    "seconds": result.seconds * task.num_problems / total,
                    "policy_version": version,
                }
            )
    return records


def tracked(found: Sequence[Evaluation]) -> dict[str, Any]:
    """What trackers get: every metric by task and mode, and for a run of one task its headline by mode alone."""
    by_task: dict[str, dict[str, Any]] = {}
    for result in found:
        for task in result.tasks:
            values = {name: metric.value for name, metric in task.metrics.items()}
            by_task.setdefault(task.task, {})[result.mode] = values
    if len(by_task) != 1:
        return {"held_out": by_task}
    headlines = {result.mode: task.metrics[task.headline].value for result in found for task in result.tasks}
    return {"held_out": {**headlines, **by_task}}


def say(name: str, found: Sequence[Evaluation]) -> None:
    """The headlines, in the log."""
    for result in found:
        for task in result.tasks:
            value = task.metrics[task.headline].value
            shown = {task.headline: None if value is None else round(value, 4)}
            log.info("held-out", when=name, mode=result.mode, task=task.task, n=task.num_problems, **shown)


def _in_thread(work: Callable[[], _T], tick: Tick) -> _T:
    pool = ThreadPoolExecutor(1)
    try:
        return results([pool.submit(work)], tick)[0]
    finally:
        pool.shutdown(wait=False)
