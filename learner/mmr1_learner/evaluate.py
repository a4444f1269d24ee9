"""Held-out accuracy, measured through the running rollout servers: greedy, and sampled as in training.

What is measured is what serves: the same engine, weights and reward server as the run's. Accuracy is the share of
problems whose one completion is exactly right by the task's exact score. A problem that cannot be judged is an error,
not a wrong answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.records import Group, Problem, Prompt, PromptId
from mmr1.reward_access import reward_client
from mmr1.rollout_client import RolloutClient
from mmr1_learner.prompts import PromptFactory, evaluation_seed
from mmr1_learner.spread import generate_everywhere
from mmr1_learner.waiting import Tick, results
from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.client import RewardClient, RewardServerError

_ITEMS_PER_REQUEST = 256
_ATTEMPTS = 4  # at one item's verdict
_AGAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pass over the held-out problems."""

    mode: str  # greedy or sampled
    num_problems: int
    accuracy: float  # in [0, 1]
    temperature: float
    seconds: float


class Evaluator:
    """Evaluates the policy that the rollout servers hold now."""

    def __init__(self, config: RunConfig, prompts: PromptFactory, problems: Sequence[Problem]) -> None:
        self._config = config
        self._prompts = prompts
        self._problems = problems[: config.eval_sample_size]

    def run(self, clients: Sequence[RolloutClient], temperature: float, tick: Tick) -> list[Evaluation]:
        """Greedy, then sampled at `temperature`. `tick` is called all the while; what it raises ends the evaluation.

        Raises:
            ConfigurationError: a row cannot be scored: its solution or task is not what the reward server takes.
            RewardServerError: the reward server does not answer, or cannot judge an item in several tries.
        """
        return [self._one(clients, "greedy", 0.0, tick), self._one(clients, "sampled", temperature, tick)]

    def _one(self, clients: Sequence[RolloutClient], mode: str, temperature: float, tick: Tick) -> Evaluation:
        started = time.monotonic()
        prompts = [self._prompt(index, problem, temperature) for index, problem in enumerate(self._problems)]
        groups = generate_everywhere(clients, prompts, tick)
        correct = _in_thread(lambda: asyncio.run(self._score(groups)), tick)
        return Evaluation(mode, len(groups), correct / len(groups), temperature, time.monotonic() - started)

    def _prompt(self, index: int, problem: Problem, temperature: float) -> Prompt:
        seed = evaluation_seed(self._config, index) if temperature else None
        return self._prompts.make(
            PromptId(f"{self._config.run}/eval", index), problem, self._prompts.sampling(temperature, seed), 1
        )

    async def _score(self, groups: Sequence[Group]) -> int:
        items = [
            Item(
                id=str(index),
                task=group.prompt.task,
                response=group.rollouts[0].text,
                solution=group.prompt.solution,
                params={"score": "exact"},
            )
            for index, group in enumerate(groups)
        ]
        correct = 0
        async with reward_client(self._config, self._config.reward_deadline_seconds) as client:
            for start in range(0, len(items), _ITEMS_PER_REQUEST):
                verdicts = await self._verdicts(client, items[start : start + _ITEMS_PER_REQUEST])
                correct += sum(verdict.reward == 1.0 for verdict in verdicts)
        return correct

    async def _verdicts(self, client: RewardClient, items: Sequence[Item]) -> list[Result]:
        """A result with a reward for each item. One that has none is asked for again: a busy machine is no verdict."""
        verdicts: dict[str, Result] = {}
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_AGAIN_SECONDS)
            missing = [item for item in items if item.id not in verdicts]
            answers = await client.score_or_raise(missing)
            verdicts |= {answer.id: answer for answer in answers if answer.reward is not None}
            if len(verdicts) == len(items):
                return [verdicts[item.id] for item in items]
        refused = {answer.id: answer for answer in answers if answer.reward is None}
        raise await self._complaint(client, next(item for item in items if item.id in refused), refused)

    async def _complaint(self, client: RewardClient, item: Item, refused: dict[str, Result]) -> Exception:
        """Whose fault it is that an item has no verdict. An empty answer is scored wherever the row itself is right."""
        said = refused[item.id]
        (empty,) = await client.score_or_raise([item.model_copy(update={"response": ""})])
        row = f"{self._config.eval_file}: row {self._problems[int(item.id)].position + 1}"
        if said.outcome is Outcome.VERIFIER_ERROR and empty.outcome is Outcome.VERIFIER_ERROR:
            return ConfigurationError(f"{row} cannot be scored: {said.detail}")
        return RewardServerError(f"{row} has no verdict after {_ATTEMPTS} tries: {said.detail}", said.outcome)


def _in_thread(work: Callable[[], int], tick: Tick) -> int:
    pool = ThreadPoolExecutor(1)
    try:
        return results([pool.submit(work)], tick)[0]
    finally:
        pool.shutdown(wait=False)
