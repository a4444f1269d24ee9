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
