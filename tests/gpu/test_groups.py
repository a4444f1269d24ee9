"""Transfer groups between GPUs: bytes arrive as they left, and no wait outlasts its deadline, whoever dies or stops.

Over NCCL a receiver has a GPU of its own; over CUDA's interprocess memory it shares the sender's.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch

from mmr1.errors import WeightUpdateError
from tests.gpu.conftest import GPUS
from tests.gpu.group_ends import End, digest, filled, make, receiving, sending, start

SIZES = (1000, 3, 64 * 2**20, 8 * 2**20 + 5)
MUCH = 256 * 2**20
WAYS = [pytest.param("ipc"), pytest.param("nccl", marks=pytest.mark.gpus(2))]
HERE = torch.device("cuda:0")

pytestmark = pytest.mark.timeout(120)


def other(transport: str, index: int = 1) -> str:
    return GPUS[index if transport == "nccl" else 0]


def formed(transport: str, buffers: tuple[int, ...], seconds: float, receivers: int = 1) -> tuple[Any, list[End]]:
    collective = make(transport, receivers + 1, seconds, HERE)
    ends = [
        start(receiving, other(transport, rank), transport, collective.port, collective.prefix, rank, receivers + 1,
              buffers, seconds)
        for rank in range(1, receivers + 1)
    ]  # fmt: skip
    collective.join()
    assert [end.hears() for end in ends] == ["joined"] * receivers
    return collective, ends


def send(collective: Any, num_bytes: int, seed: int = 0) -> int:
    with collective.sending(None):
        buffer = filled(num_bytes, seed)
        collective.send(buffer)
        collective.finish()
        return digest(buffer)


@pytest.mark.parametrize("transport", WAYS)
def test_bytes_arrive_as_they_left(transport: str) -> None:
    collective, (end,) = formed(transport, SIZES, 20.0)
    for seed, num_bytes in enumerate(SIZES):
        assert send(collective, num_bytes, seed) == end.hears()[0]
    collective.close()


@pytest.mark.gpus(3)
def test_two_receivers_get_the_same() -> None:
    collective, ends = formed("nccl", SIZES, 20.0, receivers=2)
    for seed, num_bytes in enumerate(SIZES):
        sent = send(collective, num_bytes, seed)
        assert [end.hears()[0] for end in ends] == [sent, sent]
    collective.close()


def test_two_receivers_share_one_gpu_with_the_sender() -> None:
    collective, ends = formed("ipc", SIZES, 20.0, receivers=2)
    for seed, num_bytes in enumerate(SIZES):
        sent = send(collective, num_bytes, seed)
        assert [end.hears()[0] for end in ends] == [sent, sent]
    collective.close()


def test_a_group_that_nobody_joins_is_given_up_at_the_deadline(record: Callable[..., None]) -> None:
    collective, began = make("nccl", 2, 3.0, HERE), time.monotonic()
    with pytest.raises(WeightUpdateError, match="did not form"):
        collective.join()
    took = time.monotonic() - began
    collective.close()
    record(deadline=3.0, seconds=took)
    assert 2.5 < took < 6.0


def test_waiting_for_members_ends_when_the_group_is_closed(record: Callable[..., None]) -> None:
    collective, began = make("nccl", 2, 60.0, HERE), time.monotonic()
    threading.Timer(1.0, collective.close).start()
    with pytest.raises(WeightUpdateError, match="closed"):
        collective.join()
    record(seconds=time.monotonic() - began)
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("transport", WAYS)
@pytest.mark.parametrize("heard", ["at the deadline", "when the group is closed"])
def test_a_receiver_that_is_killed_is_noticed(transport: str, heard: str, record: Callable[..., None]) -> None:
    limit = 4.0 if heard == "at the deadline" else 60.0
    collective, (end,) = formed(transport, (MUCH, MUCH), 60.0)  # a process that imports torch takes seconds to come
    collective._limit = timedelta(seconds=limit)
    assert send(collective, MUCH) == end.hears()[0]
    os.kill(end.process.pid, signal.SIGKILL)
    end.process.join()
    if heard != "at the deadline":
        threading.Timer(1.0, collective.close).start()
    began = time.monotonic()
    with pytest.raises(WeightUpdateError):
        send(collective, MUCH)
    took = time.monotonic() - began
    collective.close()
    record(transport=transport, heard=heard, seconds=took)
    assert took < (8.0 if heard == "at the deadline" else 4.0)
    again, (end,) = formed(transport, (MUCH,), 20.0)  # this process can send to another one
    assert send(again, MUCH) == end.hears()[0]
    again.close()


@pytest.mark.parametrize("transport", WAYS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_sender_that_is_gone_is_noticed(transport: str, number: int, record: Callable[..., None]) -> None:
    sender = start(sending, GPUS[0], transport, (MUCH, MUCH))
    port, prefix = sender.hears()
    end = start(receiving, other(transport), transport, port, prefix, 1, 2, (MUCH, MUCH), 5.0)
    assert end.hears() == "joined"
    sender.pipe.send("go on")
    assert isinstance(end.hears()[0], int)
    time.sleep(0.5)  # the receiver waits for the second one by now
    os.kill(sender.process.pid, number)
    try:
        said, took = end.hears(20.0)
    finally:
        os.kill(sender.process.pid, signal.SIGKILL)
    record(transport=transport, signal=signal.Signals(number).name, said=said, seconds=took)
    assert "Error" in said
    assert took < (3.0 if number == signal.SIGKILL else 8.0)


@pytest.mark.gpus(2)
def test_the_wire(record: Callable[..., None]) -> None:
    """7.5 GB in buckets of 64 MiB, as a 3B policy in bfloat16; what the sender waits for."""
    num, size = 112, 64 * 2**20
    collective, (end,) = formed("nccl", (size,) * (2 * num), 20.0)
    seconds = []
    for _ in range(2):
        with collective.sending(None):
            buffer = filled(size)
            torch.cuda.synchronize()
            began = time.monotonic()
            for _ in range(num):
                collective.send(buffer)
            collective.finish()
            seconds.append(time.monotonic() - began)
    for _ in range(2 * num):
        end.hears()
    began = time.monotonic()
    for _ in range(num):
        digest(buffer)
    record(gigabytes=num * size / 1e9, seconds=seconds, digest_seconds=time.monotonic() - began)
    collective.close()
