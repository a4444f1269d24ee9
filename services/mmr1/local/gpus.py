"""Which of this machine's GPUs each learner rank and each rollout server gets. Asks the kernel, not torch or vLLM."""

from __future__ import annotations

import re
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


def place(config: RunConfig, gpus: Sequence[str], num_ranks: int | None = None) -> Placement | None:
    """Learner ranks first, each on a GPU of its own; rollout servers on the next ones while there are enough.

    Where there are too few, servers share GPUs with the learner, not with each other: with one GPU, all is on it.
    `num_ranks` is that of the run unless it is given: 0 where there is no learner.

    Raises:
        ConfigurationError: there are too few for that too, or none where more than a CPU is asked for.
    """
    num_ranks = config.learner_processes if num_ranks is None else num_ranks
    size, num_replicas = config.rollout_tensor_parallel_size, config.rollout_replicas
    if not gpus and size == 1:
        return None
    if not gpus:
        raise ConfigurationError(f"rollout_tensor_parallel_size {size} needs GPUs, and none is visible; leave it at 1")
    if num_ranks > len(gpus):
        raise ConfigurationError(
            f"learner_processes {num_ranks} needs as many GPUs, because NCCL refuses two ranks on one, and "
            f"{len(gpus)} are visible; lower it, make more visible, or set {VISIBLE}= to run on the CPU"
        )
    if num_replicas * size > len(gpus):
        raise ConfigurationError(
            f"rollout_replicas {num_replicas} x rollout_tensor_parallel_size {size} need as many GPUs, because two "
            f"engines on one take each other's memory for their own, and {len(gpus)} are visible; lower one of them, "
            f"or set {VISIBLE}= to run on the CPU"
        )
    places = [
        [(num_ranks + index * size + worker) % len(gpus) for worker in range(size)] for index in range(num_replicas)
    ]
    return Placement(
        learner=",".join(gpus[:num_ranks]),
        rollouts=tuple(",".join(gpus[gpu] for gpu in place) for place in places),
    )
