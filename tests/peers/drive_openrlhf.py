"""OpenRLHF's SingleTurnAgentExecutor against the server: it samples from a made-up engine and asks for rewards."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import torch
from openrlhf.utils.agent import SingleTurnAgentExecutor
from running_server import check, running_server

PROMPT = "<|im_start|>user\nHow many dogs?<|im_end|>\n<|im_start|>assistant\n"


class Characters:
    """A tokenizer of one token for each character."""

    def __call__(self, text: str, add_special_tokens: bool, return_tensors: str) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, tokens))


class Engine:
    def __init__(self, response: str) -> None:
        self._response = response

    async def generate(self, tokens: list[int], params: Any, multi_modal_data: Any = None) -> SimpleNamespace:
        written = [ord(letter) for letter in self._response]
        output = SimpleNamespace(token_ids=written, text=self._response, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def reward(url: Any, response: str, label: Any) -> tuple[Any, Any, Any]:
    params = SimpleNamespace(max_tokens=100, logprobs=None)
    execution = SingleTurnAgentExecutor(url).execute(PROMPT, label, params, 1000, Characters(), Engine(response))
    output = asyncio.run(execution)
    return output["reward"], output["scores"], output["extra_logs"]


def main() -> None:
    none = {"invalid_output": [0.0], "verifier_error": [0.0], "timeout": [0.0]}
    with running_server() as url:
        counting, route = f"{url}/get_reward/counting", f"{url}/get_reward"
        check("a right answer", reward(counting, "<answer>3</answer><|im_end|>", "3"), ([1.0], [1.0], none))
        check("a wrong answer", reward(counting, "<answer>4</answer><|im_end|>", "3"), ([0.0], [0.0], none))
        label = {"task": "counting", "solution": 4, "params": {"score": "graded"}}
        check("a label that names its task", reward(route, "<answer>3</answer>", label), ([0.75], [0.75], none))
        nothing = reward(counting, "no idea<|im_end|>", "3")
        check("nothing to score", nothing, ([0.0], [0.0], none | {"invalid_output": [1.0]}))
        failed = reward(counting, "<answer>3</answer>", "a few")
        check("a failed verdict is survived and marked", failed, ([0.0], [0.0], none | {"verifier_error": [1.0]}))
        check("several addresses", reward([counting, counting], "3", "3"), ([1.0], [1.0], none))
        # What its trainer does with them.
        value, _, logs = nothing
        tensors = [torch.tensor([value]), *(torch.tensor([logged]) for logged in logs.values())]
        check("numbers that become tensors", [tuple(tensor.shape) for tensor in tensors], [(1, 1)] * 4)


if __name__ == "__main__":
    main()
