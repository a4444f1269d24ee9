"""Asks the reward server what answers are worth, until it has said so of each: a busy judge is no wrong answer.

Knows the reward server's contract. What an answer is worth to a metric is `tasks`' part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from mmr1.errors import ConfigurationError
from mmr1.evaluation.answers import Answer
from mmr1.evaluation.tasks import metrics_of
from mmr1.records import FinishReason, Group, Problem
from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.client import RewardClient, RewardServerError

AGAIN_SECONDS = 2.0
ATTEMPTS = 4  # at one item's verdict
ROWS_SHOWN = 20  # of those that cannot be scored
_ITEMS_PER_REQUEST = 256


class Judge:
    """Judges answers to the problems of one file.

    Args:
        client: of the reward server; it belongs to the event loop that calls here.
        file: of the problems, for messages.
        problems: in the order in which answers count them.
    """

    def __init__(self, client: RewardClient, file: Path | None, problems: Sequence[Problem]) -> None:
        self._client = client
        self._file = file
        self._problems = problems

    async def check_rows(self, sizes: Sequence[tuple[int, int] | None]) -> None:
        """An empty answer is scored wherever the row itself is right. `sizes`: of each problem's first image.

        Raises:
            ConfigurationError: rows cannot be scored: solution or task is not what the reward server takes, or boxes
                are outside their image. Each is named, up to ROWS_SHOWN.
            RewardServerError: the reward server does not answer.
        """
        items = [
            self._item(f"{place}/0", problem, "").model_copy(update={"image_size": size})
            for place, (problem, size) in enumerate(zip(self._problems, sizes, strict=True))
        ]
        bad: list[tuple[Item, str]] = []
        for start in range(0, len(items), _ITEMS_PER_REQUEST):
            part = items[start : start + _ITEMS_PER_REQUEST]
            again = [item for item, _ in _not_judged(part, await self._client.score_or_raise(part))]
            bad += _not_judged(again, await self._client.score_or_raise(again))
        if bad:
            lines = [f"{self._row(item)} cannot be scored: {detail}" for item, detail in bad[:ROWS_SHOWN]]
            if len(bad) > ROWS_SHOWN:
                lines.append(f"and {len(bad) - ROWS_SHOWN} more")
            count = f"{len(bad)} of {len(items)} rows cannot be scored"
            raise ConfigurationError("\n".join([f"{self._file}: {count}; repair or remove them", *lines]))

    async def judge(
        self, groups: Sequence[Group], places: Sequence[int], sizes: Sequence[tuple[int, int] | None]
    ) -> list[Answer]:
        """The answers of groups: with each the place of its problem, and the size of its first image.

        A group's prompt names, as its first reward, the params that it is scored with.

        Raises:
            ConfigurationError, RewardServerError: as `check_rows` does.
        """
        items, rest = [], []
        for group, place, size in zip(groups, places, sizes, strict=True):
            params = group.prompt.rewards[0].params if group.prompt.rewards else {}
            for sample, rollout in enumerate(group.rollouts):
                item = self._item(f"{place}/{sample}", self._problems[place], rollout.text)
                items.append(item.model_copy(update={"params": params or item.params, "image_size": size}))
                rest.append((place, sample, rollout))
        verdicts = await self._in_parts(items)
        return [
            Answer(
                problem=place,
                sample=sample,
                task=item.task,
                response=item.response,
                solution=item.solution,
                is_valid=verdict.outcome is Outcome.OK,
                is_truncated=rollout.finish_reason is FinishReason.LENGTH,
                reward=0.0 if verdict.reward is None else verdict.reward,
                components=verdict.components,
                parsed=verdict.parsed,
                detail=verdict.detail,
                params=item.params,
                image_size=item.image_size,
                version=str(rollout.oldest_version),
            )
            for (place, sample, rollout), item, verdict in zip(rest, items, verdicts, strict=True)
        ]

    def _item(self, name: str, problem: Problem, response: str) -> Item:
        params = dict(metrics_of(problem.task).params)
        return Item(id=name, task=problem.task, response=response, solution=problem.solution, params=params)

    async def _in_parts(self, items: Sequence[Item]) -> list[Result]:
        found: list[Result] = []
        for start in range(0, len(items), _ITEMS_PER_REQUEST):
            found += await self.verdicts(items[start : start + _ITEMS_PER_REQUEST])
        return found

    async def verdicts(self, items: Sequence[Item]) -> list[Result]:
        """A result with a reward for each item. One that has none is asked for again: a busy machine is no verdict."""
        verdicts: dict[str, Result] = {}
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(AGAIN_SECONDS)
            missing = [item for item in items if item.id not in verdicts]
            answers = await self._client.score_or_raise(missing)
            verdicts |= {answer.id: answer for answer in answers if answer.reward is not None}
            if len(verdicts) == len(items):
                return [verdicts[item.id] for item in items]
        refused = {answer.id: answer for answer in answers if answer.reward is None}
        raise await self._complaint(next(item for item in items if item.id in refused), refused)

    async def _complaint(self, item: Item, refused: dict[str, Result]) -> Exception:
        """Whose fault it is that an item has no verdict. An empty answer is scored wherever the row itself is right."""
        said = refused[item.id]
        (empty,) = await self._client.score_or_raise([item.model_copy(update={"response": ""})])
        row = self._row(item)
        if said.outcome is Outcome.VERIFIER_ERROR and empty.outcome is Outcome.VERIFIER_ERROR:
            return ConfigurationError(f"{row} cannot be scored: {said.detail}")
        return RewardServerError(f"{row} has no verdict after {ATTEMPTS} tries: {said.detail}", said.outcome)

    def _row(self, item: Item) -> str:
        return f"{self._file}: row {self._problems[int(item.id.partition('/')[0])].position + 1}"


def _not_judged(items: Sequence[Item], results: Sequence[Result]) -> list[tuple[Item, str]]:
    """Those that the judge cannot judge, and why. One that took it too long is no fault of the row."""
    pairs = zip(items, results, strict=True)
    return [(item, result.detail) for item, result in pairs if result.outcome is Outcome.VERIFIER_ERROR]
