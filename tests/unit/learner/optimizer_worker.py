"""A learner rank for test_optimizer_options.py: the run's engine steps on two numbers by given gradients."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmr1_learner.engine import make_engine
from mmr1_learner.ranks import join_ranks
from tests.models import small_config


class Numbers(nn.Module):
    """What is trained. Its gradient is what it is multiplied by."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))

    def forward(self, gradient: Tensor) -> Tensor:
        return (self.weight * gradient).sum()


def run(start: list[float], gradients: list[list[float]], options: dict[str, Any]) -> list[list[float]]:
    """The numbers after each step."""
    policy: Any = Numbers(start)
    engine = make_engine(small_config(Path("model"), **options), policy)
    found = []
    for gradient in gradients:
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(engine(torch.tensor(gradient)))
        engine.step()
        found.append(policy.weight.tolist())
    return found


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    join_ranks()
    runs = [run(asked["start"], asked["gradients"], options) for options in asked["options"]]
    Path(sys.argv[2]).write_text(json.dumps(runs))
