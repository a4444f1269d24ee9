"""ms-swift: an ORM class. Put these lines into a file and name it in `--external_plugins`:

    from mmr1_reward_server.adapters import swift_orm
    from swift.rewards import orms

    orms["mmr1_ocr"] = swift_orm(task="ocr", url="http://127.0.0.1:8000")

and then `--reward_funcs mmr1_ocr`. The label is the dataset's column `solution`. A verdict that failed is None: swift
leaves that function out of the sample's sum. The class is synchronous on purpose: an asynchronous one gets a new event
loop for every step, and would open its connections anew each time.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from . import calls


def swift_orm(
    *,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    solution: str = "solution",
    deadline_seconds: float = calls.DEADLINE_SECONDS,
) -> type[Any]:
    """A subclass of swift's `ORM`. `solution` is the label's column. Raises ImportError without ms-swift."""
    rewards = importlib.import_module("swift.rewards")

    class MMR1Reward(rewards.ORM):  # type: ignore[misc, name-defined]  # known only when ms-swift is there
        def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
            target = calls.find_target(url, task, params, deadline_seconds)
            labels = columns.get(solution, [None] * len(completions))
            texts = [calls.text_of(completion) for completion in completions]
            items = calls.make_items(target, texts, labels, columns.get("image_size"))
            return [result.reward for result in calls.score(target, items)]

    MMR1Reward.__name__ = MMR1Reward.__qualname__ = f"mmr1_{task or 'reward'}"
    return MMR1Reward
