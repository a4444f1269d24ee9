"""verifiers: a rubric's function (versions up to 0.3) and the inside of a task's reward (0.4 on).

    rubric = vf.Rubric(funcs=[verifiers_reward(task="ocr", url="http://127.0.0.1:8000")], weights=[1.0])

    class Reading(vf.Task[Data, vf.State, vf.TaskConfig]):
        @vf.reward(weight=1.0)
        async def ocr(self, trace: vf.Trace) -> float:
            return await verifiers_task_reward(trace.last_reply, self.data.answer, task="ocr")

The image's size, where boxes need it, is the row's column `image_size` or `info["image_size"]` for a rubric, and the
argument `image_size` within a task's reward. A verdict that failed raises RewardUnavailable. From 0.4 on the rollout
then counts as failed and is not trained on. A rubric turns an exception into 0, so the rollout's `state["error"]` is
set first, which marks it as failed. (`NeMoGymTaskset` with `--env.taskset.task.resources-url http://127.0.0.1:8000`
needs no adapter at all.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from . import calls


def verifiers_reward(
    *,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    deadline_seconds: float = calls.DEADLINE_SECONDS,
) -> Callable[..., Awaitable[float]]:
    """A function of `completion`, `answer`, `state`, `info` and the column `image_size`, called `mmr1_<task>`."""

    async def reward(completion: Any, answer: Any, state: Any, info: Any = None, image_size: Any = None) -> float:
        if image_size is None and isinstance(info, Mapping):
            image_size = info.get("image_size")
        try:
            return await verifiers_task_reward(
                completion,
                answer,
                image_size=image_size,
                url=url,
                task=task,
                params=params,
                deadline_seconds=deadline_seconds,
            )
        except Exception as error:  # a server that is not configured is no 0 either
            state["error"] = error
            raise

    reward.__name__ = f"mmr1_{task or 'reward'}"
    return reward


async def verifiers_task_reward(
    completion: Any,
    answer: Any,
    *,
    image_size: Any = None,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    deadline_seconds: float = calls.DEADLINE_SECONDS,
) -> float:
    """The reward of a text or a list of messages, against a label. Raises RewardUnavailable when the verdict failed."""
    target = calls.find_target(url, task, params, deadline_seconds)
    items = calls.make_items(target, [calls.text_of(completion)], [answer], [image_size])
    return calls.reward_of((await calls.score_async(target, items))[0])
