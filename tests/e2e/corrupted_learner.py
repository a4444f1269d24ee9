"""The real learner, except that one of its weights goes bad in memory right after it was sent."""

from __future__ import annotations

import sys

from mmr1.lifecycle import run_command
from mmr1_learner import weights
from mmr1_learner.train import main

_broadcast = weights.WeightSender._broadcast


def broadcast_then_corrupt(
    sender: weights.WeightSender, collective: weights.Collective, adapter_only: bool
) -> dict[str, int]:
    sent = _broadcast(sender, collective, adapter_only)
    name, tensor = next((n, t) for n, t in sender._policy.named_tensors() if "visual" in n and "proj.weight" in n)
    tensor[0] *= -16
    print(f"corrupted {name}", flush=True)
    return sent


weights.WeightSender._broadcast = broadcast_then_corrupt  # type: ignore[method-assign]
sys.exit(run_command(main))
