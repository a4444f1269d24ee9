"""AReaL: a reward function that its pool of processes can be sent.

    from mmr1_reward_server.adapters import areal_reward

    workflow = RLVRWorkflow(reward_fn=areal_reward(task="ocr", url="http://127.0.0.1:8000"), ...)

The label is the row's `solution`, `answer`, `ground_truth` or `label`, the first that is not None. AReaL gives a call
15 s and then counts 0, so the deadline here is shorter and a failure is an exception: AReaL tries four times, then
gives the rollout up instead of training on a zero. With one process its calls are serial; raise `max_workers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import calls

_DEADLINE_SECONDS = 12.0
_LABELS = ("solution", "answer", "ground_truth", "label")


@dataclass(frozen=True)
class ArealReward:
    """What AReaL calls: picklable, and bound to its server. AReaL passes a row's columns as keywords beside the
    texts, so no setting is a keyword of the call: a column named `url` must not send the reply and the key elsewhere.
    """

    url: str | None
    task: str | None
    params: Mapping[str, Any] | None
    deadline_seconds: float

    def __call__(
        self, /, prompt: Any, completions: str, prompt_ids: Any = None, completion_ids: Any = None, **row: Any
    ) -> float:
        """Raises RewardUnavailable when the verdict failed."""
        target = calls.find_target(self.url, self.task, self.params, self.deadline_seconds)
        label = next((row[name] for name in _LABELS if row.get(name) is not None), None)
        items = calls.make_items(target, [completions], [label], [row.get("image_size")])
        return calls.reward_of(calls.score(target, items)[0])


def areal_reward(
    *,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    deadline_seconds: float = _DEADLINE_SECONDS,
) -> ArealReward:
    """A reward function for a workflow's `reward_fn`."""
    return ArealReward(url, task, params, deadline_seconds)
