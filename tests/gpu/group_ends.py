"""Both ends of a transfer group as processes of their own, to be killed and stopped: no engine, no learner."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from mmr1.weight_plan import digest_of_sum, word_sums
from mmr1_learner.collective import Meeting
from mmr1_learner.device_collective import IpcCollective, NcclCollective
from mmr1_rollout_server.transfer_groups import join

HOST = "127.0.0.1"
CAPACITY = 512 * 2**20


@dataclass
class End:
    """A process and what it says."""

    process: Any
    pipe: Connection

    def hears(self, seconds: float = 60.0) -> Any:
        assert self.pipe.poll(seconds), "nothing was said"
        return self.pipe.recv()


def start(target: Callable[..., None], gpu: str, *arguments: Any) -> End:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, gpu, *arguments), daemon=True)
    process.start()
    return End(process, here)


def receiving(
    pipe: Connection, gpu: str, transport: str, port: int, prefix: str, rank: int, size: int, buffers: Sequence[int],
    seconds: float,
) -> None:  # fmt: skip
    """Join, then receive buffers of these sizes; says "joined", then a digest and the seconds of each, or the error."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    began = time.monotonic()
    try:
        group = join(transport, HOST, port, prefix, rank, size, 30.0, torch.device("cuda:0"))
        pipe.send("joined")
        for num_bytes in buffers:
            buffer = torch.zeros(num_bytes, dtype=torch.uint8, device="cuda")
            torch.cuda.synchronize()
            began = time.monotonic()
            group.post(buffer, seconds)
            group.take(seconds)
            pipe.send((digest(buffer), time.monotonic() - began))
        pipe.recv()
    except RuntimeError as error:
        pipe.send((f"{type(error).__name__}: {str(error)[:200]}", time.monotonic() - began))


def sending(pipe: Connection, gpu: str, transport: str, buffers: Sequence[int]) -> None:
    """Say where to meet, then send buffers of these sizes, each when told to."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    collective = make(transport, 2, 60.0, torch.device("cuda:0"))
    pipe.send((collective.port, collective.prefix))
    collective.join()
    for num_bytes in buffers:
        pipe.recv()
        with collective.sending(None):
            collective.send(filled(num_bytes))
            collective.finish()
    pipe.recv()


def make(transport: str, size: int, seconds: float, device: torch.device) -> Meeting:
    if transport == "nccl":
        return NcclCollective(HOST, size, seconds, device)
    return IpcCollective(HOST, size, seconds, torch.empty(CAPACITY, dtype=torch.uint8, device=device))


def filled(num_bytes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device="cuda", generator=generator)


def digest(buffer: torch.Tensor) -> int:
    return digest_of_sum(int(word_sums(buffer, [buffer.numel()])))
