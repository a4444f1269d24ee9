"""ms-swift's own computation of rewards with our ORM class, registered as a plugin file registers it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from running_server import check, running_server
from swift.rewards import orms
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func
from swift.utils import import_external_file

PLUGIN = """
from mmr1_reward_server.adapters import swift_orm
from swift.rewards import orms

orms["mmr1_counting"] = swift_orm(task="counting", url="{url}")
"""


def sample(response: str, solution: Any) -> GRPOSample:
    messages = [{"role": "user", "content": "How many dogs?"}, {"role": "assistant", "content": response}]
    return GRPOSample.from_row({"messages": messages, "prompt_id": "a", "request_id": "b", "solution": solution})


def main() -> None:
    with running_server() as url, tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "plugin.py"
        plugin.write_text(PLUGIN.format(url=url))
        import_external_file(str(plugin))
        reward = orms["mmr1_counting"](args=None)
        samples = [sample("<answer>3</answer>", label) for label in ("3", "4", "a few")]
        rewards = compute_rewards_per_func(samples, [reward], [None], torch.device("cpu"))
        check("one reward for each sample", rewards[:2, 0].tolist(), [1.0, 0.0])
        check("a failed verdict is left out, not zero", bool(torch.isnan(rewards[2, 0])), True)


if __name__ == "__main__":
    main()
