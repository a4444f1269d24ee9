"""Which of this machine's GPUs each learner rank and each rollout server gets. Asks the kernel, not torch or vLLM."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Placement:
    """Values of CUDA_VISIBLE_DEVICES: one for all learner ranks, which choose by their number, one for each server."""

    learner: str
    rollouts: tuple[str, ...]


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that a child with this environment would see, by index or by number; empty: none."""
    if VISIBLE in environment:
        return [name for name in environment[VISIBLE].split(",") if name not in ("", "-1")]
    found = [match[1] for path in devices.glob("nvidia*") if (match := re.fullmatch(r"nvidia(\d+)", path.name))]
    return [str(index) for index in range(len(found))]  # CUDA counts those it can use, whatever the kernel calls them


def place(config: RunConfig, gpus: Sequence[str]) -> Placement | None:
    """Learner ranks first, each on a GPU of its own; rollout servers on the next ones while there are enough.

    Where there are too few, servers share GPUs with the learner and with each other: with one GPU, everything is on it.

    Raises:
        ConfigurationError: there are too few for that too.
    """
    if not gpus:
        return None
    num_ranks, size = config.learner_processes, config.rollout_tensor_parallel_size
    if num_ranks > len(gpus):
        raise ConfigurationError(
            f"learner_processes {num_ranks} needs as many GPUs, because NCCL refuses two ranks on one, and "
            f"{len(gpus)} are visible; lower it or make more visible"
        )
    if size > len(gpus):
        raise ConfigurationError(
            f"rollout_tensor_parallel_size {size} needs as many GPUs, and {len(gpus)} are visible; lower it"
        )
    places = [
        [(num_ranks + index * size + worker) % len(gpus) for worker in range(size)]
        for index in range(config.rollout_replicas)
    ]
    fullest = max(Counter(gpu for place in places for gpu in place).values())
    if fullest * config.gpu_memory_utilization > 1:
        raise ConfigurationError(
            f"{fullest} rollout servers share a GPU, and each takes gpu_memory_utilization "
            f"{config.gpu_memory_utilization:g} of it; lower that or rollout_replicas"
        )
    return Placement(
        learner=",".join(gpus[:num_ranks]),
        rollouts=tuple(",".join(gpus[gpu] for gpu in place) for place in places),
    )
