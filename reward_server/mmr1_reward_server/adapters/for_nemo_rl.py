"""NeMo-RL: an environment of one step. Put these lines into a module of yours:

    import ray
    from mmr1_reward_server.adapters import nemo_rl_environment

    MMR1Environment = ray.remote(nemo_rl_environment())

and before the run `register_env("mmr1", "my_module.MMR1Environment")` (`nemo_rl.environments.utils`), with
`env.mmr1: {url: "http://127.0.0.1:8000", task: ocr}` in the configuration. The label is `ground_truth` in each sample's
`extra_env_info`, the image's size its `image_size` if there is one. A verdict that failed raises RewardUnavailable from
`step`, unless `failed_score` gives a number. (With NeMo-Gym, `/verify` of the server masks such a sample and no adapter
is needed.)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from . import calls


def nemo_rl_environment() -> type[Any]:
    """A subclass of `EnvironmentInterface`, made with its configuration. Raises ImportError without NeMo-RL."""
    interfaces = importlib.import_module("nemo_rl.environments.interfaces")
    torch = importlib.import_module("torch")

    class MMR1Environment(interfaces.EnvironmentInterface):  # type: ignore[misc, name-defined]  # only with NeMo-RL
        def __init__(self, cfg: Mapping[str, Any]) -> None:
            deadline_seconds = cfg.get("deadline_seconds", calls.DEADLINE_SECONDS)
            self._target = calls.find_target(cfg.get("url"), cfg.get("task"), cfg.get("params"), deadline_seconds)
            self._failed_score = cfg.get("failed_score")

        def step(self, message_log_batch: Sequence[Any], metadata: Sequence[Any]) -> Any:
            """Rewards are [batch], float32, on the CPU; every episode ends here."""
            number = len(message_log_batch)
            labels = [(one or {}).get("ground_truth") for one in metadata]
            sizes = [(one or {}).get("image_size") for one in metadata]
            items = calls.make_items(self._target, [_response(log) for log in message_log_batch], labels, sizes)
            results = calls.score(self._target, items)
            rewards = [calls.report(result, "reward", self._failed_score)["reward"] for result in results]
            return interfaces.EnvironmentReturn(
                observations=[{"role": "environment", "content": ""} for _ in range(number)],
                metadata=list(metadata),
                next_stop_strings=[None] * number,
                rewards=torch.tensor(rewards, dtype=torch.float32),
                terminateds=torch.ones(number),
                answers=None,
            )

        def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
            return batch, {"mean_reward": float(batch["total_reward"].float().mean())}

        def shutdown(self) -> None:
            pass

    return MMR1Environment


def _response(message_log: Sequence[Mapping[str, Any]]) -> str:
    return calls.text_of([message for message in message_log if message.get("role") == "assistant"])
