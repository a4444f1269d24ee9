"""A randomly initialised small Qwen2.5-VL for tests, and configurations around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmr1.config import RunConfig


def small_config(model: Path, **options: Any) -> RunConfig:
    """A valid RunConfig around `model`."""
    defaults: dict[str, Any] = {
        "model": str(model),
        "train_file": "train.json",
        "num_steps": 4,
        "per_device_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
    }
    return RunConfig(**{**defaults, **options})


def small_policy(model: Path, seed: int | None = None) -> Any:
    """The policy at `model`, with seeded noise added to every parameter when `seed` is given."""
    import torch

    from mmr1_learner.model import load_policy

    policy = load_policy(str(model), small_config(model))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in policy.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return policy


class Letters:
    """A tokenizer whose tokens are bytes, with one special token, for what needs no model. 256 ends a text."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())

    def decode(
        self, ids: list[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        text = bytes(token for token in ids if token < 256).decode(errors="replace")
        return text if skip_special_tokens or 256 not in ids else text + "<end>"
