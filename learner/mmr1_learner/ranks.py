"""The learner's ranks: who we are, and the few things ranks tell each other.

Bytes and numbers only; nothing is pickled. Every collective has a deadline, so a dead rank is an error, not a hang.
Words go through the hosts' memory: the other ranks wait for rank 0's long and often, and over NCCL a rank that waits
keeps a core and its GPU busy, and has to have computed everything before.
"""

from __future__ import annotations

import atexit
import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist

from mmr1_learner.extension import load_extension

# Longer than any weight update or evaluation, during which the other ranks wait for rank 0.
COLLECTIVE_DEADLINE = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the learner's ranks."""

    rank: int
    world_size: int
    device: torch.device
    words: Any = None  # the group that `share` uses; None: the one that all else does

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, data: bytes | None) -> bytes:
        """Rank 0's bytes, on every rank."""
        if self.world_size == 1:
            assert data is not None
            return data
        size = torch.tensor([len(data) if data is not None else 0], dtype=torch.long)
        dist.broadcast(size, 0, group=self.words)
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if data and self.is_first:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if int(size):
            dist.broadcast(buffer, 0, group=self.words)
        return buffer.numpy().tobytes()

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Each value summed over the ranks; every rank must pass the same names."""
        if self.world_size == 1 or not values:
            return dict(values)
        names = sorted(values)
        totals = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return dict(zip(names, totals.tolist(), strict=True))

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank; every rank must ask."""
        return self.sum({"ranks": float(here)})["ranks"] > 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))


def join_ranks() -> Ranks:
    """Meet the other ranks: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun and `mmr1 up` set them."""
    load_extension()  # before ranks meet: one that waited for its turn inside would hold up the one whose turn it is
    import deepspeed

    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if os.environ["WORLD_SIZE"] == "1":
        os.environ.setdefault("MASTER_PORT", "0")  # of a rank alone: any free one
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local_rank)
        # By default a float32 convolution there, which cuts images into patches, keeps 10 bits of 23.
        torch.backends.cudnn.allow_tf32 = False
    deepspeed.init_distributed(
        dist_backend="nccl" if cuda else "gloo", timeout=COLLECTIVE_DEADLINE, verbose=False, auto_mpi_discovery=False
    )
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not cuda:
        atexit.register(leave_ranks)
        return Ranks(rank, world_size, torch.device("cpu"))
    _choose_interface()
    words = dist.new_group(backend="gloo", timeout=COLLECTIVE_DEADLINE) if world_size > 1 else None
    if words is not None:
        atexit.register(_leave_words, words)
    return Ranks(rank, world_size, torch.device("cuda", local_rank), words)


def _choose_interface() -> None:
    """gloo listens where this machine's name leads, which may be its loopback: other machines' ranks would find nobody.

    GLOO_SOCKET_IFNAME, when it is set, decides.
    """
    name = interface_towards(os.environ["MASTER_ADDR"])
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_towards(host: str) -> str | None:
    """The network interface that leads to `host`; None when that is this machine's loopback, or nothing leads there."""
    try:
        family, *_, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as asked:  # nothing is sent
            asked.connect(address)
            own = asked.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == own for one in addresses):
            return None if ipaddress.ip_address(own).is_loopback else name
    return None


def leave_ranks() -> None:
    """Leave the group: at the end of a run that went well, and on a CPU at the end of any.

    NCCL would wait here for ranks that are gone. Gloo must be left while there still is an interpreter: a thread of
    it lets go of the last collective's tensors a moment after it is waited for, which takes the GIL; when the
    interpreter has ended meanwhile, that ends the process by SIGABRT (2 of 40 ranks that had nothing else to do).
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_words(words: Any) -> None:
    """On a GPU too: the group of `share` is gloo's."""
    if dist.is_initialized():
        dist.destroy_process_group(words)
