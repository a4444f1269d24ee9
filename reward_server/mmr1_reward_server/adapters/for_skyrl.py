"""SkyRL-gym: a text environment of one step.

    import skyrl_gym
    from mmr1_reward_server.adapters import skyrl_environment

    skyrl_gym.register(id="mmr1_ocr", entry_point=skyrl_environment(task="ocr", url="http://127.0.0.1:8000"))

The label is `reward_spec.ground_truth` of the row, the image's size its `image_size`. A verdict that failed raises
RewardUnavailable from `step`: SkyRL has no reward for "no reward".
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from . import calls


def skyrl_environment(
    *,
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    deadline_seconds: float = calls.DEADLINE_SECONDS,
) -> type[Any]:
    """A subclass of `BaseTextEnv`. Raises ImportError without skyrl-gym."""
    module = importlib.import_module("skyrl_gym.envs.base_text_env")

    class MMR1Environment(module.BaseTextEnv):  # type: ignore[misc, name-defined]  # known only when skyrl-gym is there
        def __init__(self, env_config: Any = None, extras: Mapping[str, Any] | None = None) -> None:
            super().__init__()
            extras = extras or {}
            spec = extras.get("reward_spec") or {}
            if "ground_truth" not in spec:
                raise ValueError("the row has no reward_spec.ground_truth")
            self._label = spec["ground_truth"]
            self._image_size = extras.get("image_size")

        def step(self, action: str) -> Any:
            target = calls.find_target(url, task, params, deadline_seconds)
            items = calls.make_items(target, [action], [self._label], [self._image_size])
            result = calls.score(target, items)[0]
            return module.BaseTextEnvStepOutput(
                observations=[],
                reward=calls.reward_of(result),
                done=True,
                metadata={"outcome": result.outcome.value, "detail": result.detail, **result.components},
            )

    return MMR1Environment
