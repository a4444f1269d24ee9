"""TRL: reward functions for `GRPOTrainer(reward_funcs=[...])`, asynchronous or not, conversational or not.

    from mmr1_reward_server.adapters import trl_reward

    trainer = GRPOTrainer(model, reward_funcs=[trl_reward(task="ocr"), trl_reward(task="format")], ...)

The label is the dataset's column `solution`, the image's size its column `image_size` if there is one. A verdict that
failed is None: TRL leaves that function out of the sample's sum, and the sample out if nothing remains.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ..api import Outcome, Result
from . import calls

Rewards = list[float | None]


def trl_reward(
    *,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    solution: str = "solution",
    deadline_seconds: float = calls.DEADLINE_SECONDS,
) -> Callable[..., Rewards]:
    """A reward function under the name `mmr1_<task>`, which TRL's logs show. `solution` is the label's column."""

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        target = calls.find_target(url, task, params, deadline_seconds)
        return _rewards(calls.score(target, _items(target, completions, columns, solution)), columns, name)

    name = reward.__name__ = f"mmr1_{task or 'reward'}"
    return reward


def trl_reward_async(
    *,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    solution: str = "solution",
    deadline_seconds: float = calls.DEADLINE_SECONDS,
) -> Callable[..., Awaitable[Rewards]]:
    """As `trl_reward`; TRL awaits several of these at the same time."""

    async def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        target = calls.find_target(url, task, params, deadline_seconds)
        return _rewards(await calls.score_async(target, _items(target, completions, columns, solution)), columns, name)

    name = reward.__name__ = f"mmr1_{task or 'reward'}"
    return reward


def _items(target: calls.Target, completions: Sequence[Any], columns: Mapping[str, Any], solution: str) -> list[Any]:
    # Only these two columns are looked at: the others hold images, and the trainer itself.
    labels = columns.get(solution, [None] * len(completions))
    return calls.make_items(target, [calls.text_of(one) for one in completions], labels, columns.get("image_size"))


def _rewards(results: Sequence[Result], columns: Mapping[str, Any], name: str) -> Rewards:
    log_metric = columns.get("log_metric")
    if callable(log_metric) and results:
        invalid = sum(result.outcome is Outcome.INVALID_OUTPUT for result in results)
        log_metric(f"{name}/failed", sum(result.reward is None for result in results) / len(results))
        log_metric(f"{name}/invalid_output", invalid / len(results))
    return [result.reward for result in results]
