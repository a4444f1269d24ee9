"""verl's reward loop with our custom reward functions: its own loading of them, its naive manager, a made-up batch."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from running_server import check, running_server
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

from mmr1_reward_server.adapters import RewardUnavailable


class Characters:
    """A tokenizer of one token for each character."""

    def decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> str:
        return "".join(chr(token) for token in tokens.tolist())


def batch(response: str, ground_truth: Any) -> DataProto:
    prompt = torch.tensor([[ord("?")]])
    written = torch.tensor([[ord(letter) for letter in response]])
    mask = torch.ones(1, 1 + len(response), dtype=torch.long)
    tensors = {"prompts": prompt, "responses": written, "attention_mask": mask}
    others = {
        "data_source": np.array(["dogs"], dtype=object),
        "reward_model": np.array([{"ground_truth": ground_truth}], dtype=object),
        "extra_info": np.array([{"index": 0}], dtype=object),
    }
    return DataProto(batch=TensorDict(tensors, batch_size=1), non_tensor_batch=others)


async def run(url: str, function: str, response: str, ground_truth: Any, **options: Any) -> dict[str, Any]:
    custom = {
        "path": "pkg://mmr1_reward_server.adapters",
        "name": function,
        "reward_kwargs": {"url": url, "task": "counting", **options},
    }
    manager = {"source": "register", "name": "naive", "module": None}
    config = OmegaConf.create({"reward": {"custom_reward_function": custom, "reward_manager": manager}})
    loaded = load_reward_manager(config, Characters())
    return dict(await loaded.run_single(batch(response, ground_truth)))


def answered(score: float, failed: float = 0.0, invalid: float = 0.0) -> dict[str, Any]:
    extra = {"score": score, "reward_failed": failed, "invalid_output": invalid}
    return {"reward_score": score, "reward_extra_info": extra}


async def drive(url: str) -> None:
    for function in ("verl_reward", "verl_reward_async"):
        check(f"{function}: right", await run(url, function, "<answer>3</answer>", "3"), answered(1.0))
        graded = await run(url, function, "<answer>3</answer>", np.int64(4), params={"score": "graded"})
        check(f"{function}: params", graded, answered(0.75))
        check(f"{function}: nothing to score", await run(url, function, "?", "3"), answered(0.0, invalid=1.0))
        marked = await run(url, function, "<answer>3</answer>", "a few", failed_score=-1.0)
        check(f"{function}: a failed verdict is marked", marked, answered(-1.0, failed=1.0))
        try:
            await run(url, function, "<answer>3</answer>", "a few")
        except RewardUnavailable:
            print(f"ok: {function}: a failed verdict raises")
        else:
            raise SystemExit(f"not ok: {function}: a failed verdict gave a reward")


def main() -> None:
    with running_server() as url:
        asyncio.run(drive(url))


if __name__ == "__main__":
    main()
