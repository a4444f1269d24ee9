"""verl: a `custom_reward_function`, asynchronous or not. One sample for each call; verl calls by keyword.

    reward.custom_reward_function.path=pkg://mmr1_reward_server.adapters
    reward.custom_reward_function.name=verl_reward_async
    +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8000
    +reward.custom_reward_function.reward_kwargs.task=ocr

(older versions have `custom_reward_function` at the top level). The label is `ground_truth`; the image's size may be
`extra_info.image_size`. verl has no reward for "no reward": a verdict that failed after all retries raises
RewardUnavailable and ends the run, unless `reward_kwargs.failed_score` gives a number. `reward_failed` and
`invalid_output` (0 or 1) are in `reward_extra_info` either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import calls


def verl_reward(
    data_source: str | None = None,
    solution_str: str = "",
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    deadline_seconds: float = calls.DEADLINE_SECONDS,
    failed_score: float | None = None,
    **_: Any,
) -> dict[str, float]:
    """{"score", "reward_failed", "invalid_output"}. Raises RewardUnavailable, see above."""
    target = calls.find_target(url, task, params, deadline_seconds)
    items = calls.make_items(target, [solution_str], [ground_truth], [(extra_info or {}).get("image_size")])
    return calls.report(calls.score(target, items)[0], "score", failed_score)


async def verl_reward_async(
    data_source: str | None = None,
    solution_str: str = "",
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    deadline_seconds: float = calls.DEADLINE_SECONDS,
    failed_score: float | None = None,
    **_: Any,
) -> dict[str, float]:
    """As `verl_reward`, on verl's event loop: prefer it, since verl runs the other in a small pool of threads."""
    target = calls.find_target(url, task, params, deadline_seconds)
    items = calls.make_items(target, [solution_str], [ground_truth], [(extra_info or {}).get("image_size")])
    return calls.report((await calls.score_async(target, items))[0], "score", failed_score)
