"""EasyR1: a batch reward function. EasyR1 loads it from a file, this one:

    worker.reward.reward_function="$(python -c 'import mmr1_reward_server.adapters.for_easyr1 as m; print(m.__file__)'):easyr1_reward"
    worker.reward.reward_function_kwargs='{url: "http://127.0.0.1:8000", task: ocr}'

The label is `ground_truth`, the one column that EasyR1 passes on. What else a sample needs goes into it, as an object or
as a text that holds one with a `task`:

    {"task": "grounding", "solution": [10, 10, 110, 60], "image_size": [640, 480]}

EasyR1 has no reward for "no reward": a verdict that failed after all retries raises RewardUnavailable and ends the run,
unless `failed_score` gives a number, counted by the metric `reward_failed`.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Absolute: EasyR1 runs this file outside of its package.
from mmr1_reward_server.adapters import calls

REWARD_NAME = "mmr1"
REWARD_TYPE = "batch"


def easyr1_reward(
    reward_inputs: Sequence[Mapping[str, Any]],
    *,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    deadline_seconds: float = calls.DEADLINE_SECONDS,
    failed_score: float | None = None,
) -> list[dict[str, float]]:
    """For each of {"response", "ground_truth"}: {"overall", "reward_failed", "invalid_output"}."""
    target = calls.find_target(url, task, params, deadline_seconds)
    responses = [one["response"] for one in reward_inputs]
    sizes = [one.get("image_size") for one in reward_inputs]  # there in forks that pass all columns on
    items = calls.make_items(target, responses, [one["ground_truth"] for one in reward_inputs], sizes)
    return [calls.report(result, "overall", failed_score) for result in calls.score(target, items)]
