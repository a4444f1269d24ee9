"""Rank 0 may wait for rollouts longer than a collective may last: the other ranks hear from it meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tests.conftest import free_port

DEADLINE_SECONDS = 4.0
WAIT_SECONDS = 3 * DEADLINE_SECONDS


def one_rank(rank: int, port: int, heard: Path) -> None:
    """A rank of two: rank 0 waits, ticking as its leader does, and then says a word."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    from torch import nn

    from mmr1_learner import published as published_file
    from mmr1_learner import ranks as ranks_file
    from mmr1_learner.leader import Leader
    from mmr1_learner.model import Policy

    ranks_file.COLLECTIVE_DEADLINE = timedelta(seconds=DEADLINE_SECONDS)
    published_file._KEEP_ALIVE_SECONDS = DEADLINE_SECONDS / 4
    ranks = ranks_file.join_ranks()
    published = published_file.Published(Policy(nn.Linear(2, 2)), ranks, bucket_bytes=100)
    ranks.barrier()
    if not ranks.is_first:
        heard.write_bytes(published.tell(None))
        return
    leader = object.__new__(Leader)  # its waiting alone
    leader._policy, leader._stop, leader._thread = published, False, threading.get_ident()
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        leader._tick()
        time.sleep(0.05)
    published.tell(b"go on")


def test_a_long_wait_of_rank_0_ends_no_other_rank(tmp_path: Path) -> None:
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes = [context.Process(target=one_rank, args=(rank, port, tmp_path / "heard")) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert (tmp_path / "heard").read_bytes() == b"go on"


def test_one_rank_alone_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch import nn

    from mmr1_learner import published as published_file
    from mmr1_learner.model import Policy
    from mmr1_learner.ranks import Ranks

    monkeypatch.setattr(published_file, "_KEEP_ALIVE_SECONDS", 0.0)
    alone = published_file.Published(Policy(nn.Linear(2, 2)), Ranks(0, 1, torch.device("cpu")), bucket_bytes=100)
    alone.keep_alive()
    assert alone.tell(b"word") == b"word"
