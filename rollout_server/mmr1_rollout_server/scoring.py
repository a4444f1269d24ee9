"""From a sampled group to a scored one: one item per rollout and reward, summed by weight.

A component without a result leaves its sample without one: a failed judge is not a bad answer. When the server cannot
score at all, nothing is concluded from that: its prompts wait. This file knows nothing of streams or of how scores are
made.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import structlog

from mmr1.errors import ConfigurationError
from mmr1.records import Group, Outcome, Prompt, Rollout, Score
from mmr1.reward_access import KEY_REMEDY
from mmr1_reward_server.api import Item, Result
from mmr1_reward_server.client import KeyRefused, RequestRefused, RewardClient, RewardServerError
from mmr1_rollout_server.breaker import Breaker

MAX_PARSED_CHARS = 4096  # of what one reward read, as JSON: some sixty boxes with labels

_log = structlog.get_logger(__name__)


class RewardOutageError(Exception):
    """The reward server is out of reach, or scores nothing: nobody's answer was judged, so nothing is concluded."""


class Scorer:
    """Asks one reward server.

    Args:
        client: for scoring.
        prober: for asking, after a failure, whether the server is there at all; its deadline is short.
        breaker: keeps from asking in vain.
    """

    def __init__(self, client: RewardClient, prober: RewardClient, breaker: Breaker | None = None) -> None:
        self._client = client
        self._prober = prober
        self.breaker = breaker or Breaker()
        self._unscored: Item | None = None  # of the last group that failed: what a probe asks for

    async def score(self, group: Group, image_size: tuple[int, int] | None) -> Group:
        """The group with a score on each rollout. `image_size`: width and height of the first image in pixels.

        Raises:
            RewardOutageError: the server is out of reach, or has failed several groups in a row. Any other failure of
                its is the samples' outcome.
            ConfigurationError: it does not take our key.
        """
        begun = time.monotonic()
        items = items_of(group, image_size)
        if not items:
            return group
        if self.breaker.is_open:  # while this group was sampled
            raise RewardOutageError(self.breaker.reason)
        try:
            results = await self._client.score_or_raise(items)
            self.breaker.scored()
        except KeyRefused as error:
            raise ConfigurationError(f"{error}; {KEY_REMEDY}") from None
        except RewardServerError as error:
            await self._note_failure(error, items)
            _log.warning("scoring_failed", prompt=str(group.prompt.id), reason=str(error))
            results = [Result(id=item.id, outcome=error.outcome, reward=None, detail=str(error)) for item in items]
        num_rewards = len(group.prompt.rewards)
        scored = tuple(
            replace(rollout, score=combine(group.prompt, results[i * num_rewards : (i + 1) * num_rewards]))
            for i, rollout in enumerate(group.rollouts)
        )
        return replace(group, rollouts=scored, score_seconds=time.monotonic() - begun)

    async def _note_failure(self, error: RewardServerError, items: list[Item]) -> None:
        """Raise RewardOutageError unless the failure is this group's own, or one of few."""
        if isinstance(error, RequestRefused):  # the server is well, and says that these items are not
            return
        self._unscored = items[0]
        if self.breaker.failed(str(error), is_gone=not await self.reachable()):
            raise RewardOutageError(str(error)) from error

    async def probe(self) -> None:
        """While the breaker is open: does the server score again? Takes as long as scoring may."""
        if not await self.reachable():
            self.breaker.probed(False)
            return
        try:
            if self._unscored is not None:  # a server that lists its tasks may still score none
                await self._client.score_or_raise([self._unscored])
        except RequestRefused:
            pass
        except RewardServerError as error:
            self.breaker.reason = str(error)
            self.breaker.probed(False)
            return
        self.breaker.probed(True)

    async def reachable(self) -> bool:
        try:
            await self._prober.tasks()
        except RewardServerError:
            return False
        return True


def items_of(group: Group, image_size: tuple[int, int] | None) -> list[Item]:
    """Rollout by rollout, within each in the order of the prompt's rewards."""
    return [
        _item(group.prompt, i, rollout, j, image_size)
        for i, rollout in enumerate(group.rollouts)
        for j in _rewards(group)
    ]


def combine(prompt: Prompt, results: list[Result]) -> Score:
    """One sample's score from its components, in the order of the prompt's rewards."""
    components = {
        name: result.reward for name, result in zip(names_of(prompt), results, strict=True) if result.reward is not None
    }
    details = "; ".join(result.detail for result in results if result.detail)
    bounded = {name: _bounded(result.parsed) for name, result in zip(names_of(prompt), results, strict=True)}
    parsed = {name: value for name, value in bounded.items() if value is not None}
    for outcome in (Outcome.VERIFIER_ERROR, Outcome.TIMEOUT):
        if any(result.outcome.value == outcome.value for result in results):
            return Score(outcome, None, components, details, parsed)
    reward = sum(spec.weight * (result.reward or 0.0) for spec, result in zip(prompt.rewards, results, strict=True))
    invalid = any(result.outcome.value == Outcome.INVALID_OUTPUT.value for result in results)
    return Score(Outcome.INVALID_OUTPUT if invalid else Outcome.OK, reward, components, details, parsed)


def _bounded(parsed: Any) -> Any:
    """What was read, for the record: of a list that is too long the first items, of anything else that is, nothing."""
    if parsed is None or len(json.dumps(parsed)) <= MAX_PARSED_CHARS:
        return parsed
    if not isinstance(parsed, list):
        return None
    kept: list[Any] = []
    left = MAX_PARSED_CHARS
    for item in parsed:
        left -= len(json.dumps(item)) + 2
        if left < 0:
            break
        kept.append(item)
    return kept or None


def names_of(prompt: Prompt) -> list[str]:
    """The rewards' names; a task used more than once is numbered, so that no component hides another."""
    total = Counter(spec.task for spec in prompt.rewards)
    seen: Counter[str] = Counter()
    names = []
    for spec in prompt.rewards:
        seen[spec.task] += 1
        names.append(spec.task if total[spec.task] == 1 else f"{spec.task}-{seen[spec.task]}")
    return names


def _rewards(group: Group) -> range:
    return range(len(group.prompt.rewards))


def _item(prompt: Prompt, i: int, rollout: Rollout, j: int, image_size: tuple[int, int] | None) -> Item:
    spec = prompt.rewards[j]
    return Item(
        id=f"{prompt.id}/{i}/{j}",
        task=spec.task,
        response=rollout.text,
        solution=prompt.solution,
        params=spec.params,
        image_size=image_size,
    )
