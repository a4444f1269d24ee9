"""How three trainers ask the reward server: OpenRLHF's and slime's own bodies over HTTP, and TRL's reward function.

MMR1_REWARD_URL says where it is and MMR1_REWARD_API_KEY holds its key. What comes back is printed; a wrong reward is
exit code 1. It trains nothing.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import httpx

from mmr1_reward_server.adapters import trl_reward

CALL = "<|im_start|>user\nHow many dots?<|im_end|>\n<|im_start|>assistant\n"
RIGHT, WRONG = "<answer>3</answer>", "<answer>4</answer>"


def openrlhf(client: httpx.Client) -> Any:
    """`--reward.remote_url http://reward-server:8000/get_reward/counting`"""
    body = {"query": [f"{CALL}{text}<|im_end|>" for text in (RIGHT, WRONG)], "prompts": [CALL] * 2, "labels": ["3"] * 2}
    return client.post("/get_reward/counting", json=body).raise_for_status().json()["rewards"]


def slime(client: httpx.Client) -> Any:
    """`--rm-type remote_rm --rm-url http://reward-server:8000/slime/counting`, one sample a request"""
    bodies = [{"prompt": "How many dots?", "response": text, "label": "3"} for text in (RIGHT, WRONG)]
    return [client.post("/slime/counting", json=body).raise_for_status().json() for body in bodies]


def trl(client: httpx.Client) -> Any:
    """`GRPOTrainer(reward_funcs=[trl_reward(task="counting")])`, with the dataset's column `solution`"""
    reward = trl_reward(url=str(client.base_url), task="counting")
    return reward(prompts=["How many dots?"] * 2, completions=[RIGHT, WRONG], solution=["3", "3"])


def main() -> int:
    key = os.environ["MMR1_REWARD_API_KEY"].strip()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=os.environ["MMR1_REWARD_URL"], headers=headers, timeout=60.0, trust_env=False) as client:
        answers = {ask.__name__: ask(client) for ask in (openrlhf, slime, trl)}
    for name, rewards in answers.items():
        print(f"{name}: {rewards}")
    return 0 if all(rewards == [1.0, 0.0] for rewards in answers.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
