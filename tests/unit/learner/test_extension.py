"""A learner that was killed while its extension was checked or compiled holds up nobody."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmr1_learner.extension import load_alone
from tests.conftest import free_port

JOIN = """
import atexit
import torch.distributed
from mmr1_learner.ranks import join_ranks

atexit.register(lambda: print("in the group:", torch.distributed.is_initialized()))
join_ranks().barrier()
"""
HOLD = """
import os, sys
os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)
print("held", flush=True)
sys.stdin.readline()
os.remove(sys.argv[1])
"""
LOAD = """
import sys, time
from pathlib import Path
from mmr1_learner.extension import load_alone

def load():
    lock = Path(sys.argv[1], "lock")
    lock.touch()
    try:
        print("loading", flush=True)
        time.sleep(60)
    finally:
        lock.unlink()

load_alone(Path(sys.argv[1]), load)
"""


def python(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env={**os.environ, **environment}, **pipes)  # type: ignore[call-overload,no-any-return]


def test_two_ranks_start_together_although_a_killed_learner_has_left_its_lock(tmp_path: Path) -> None:
    compiled = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")
    if compiled.exists():  # with its times, so that nothing is compiled again
        shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"TORCH_EXTENSIONS_DIR": str(tmp_path), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    ranks = [python(JOIN, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    try:
        assert [rank.wait(240) for rank in ranks] == [0, 0]
        last = [rank.stdout.read().splitlines()[-1] for rank in ranks if rank.stdout]
        assert last == ["in the group: False"] * 2, "a rank ended beside gloo's threads, which now and then aborts it"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert not lock.exists()


def test_the_lock_of_a_living_process_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = python(HOLD, lock)
    try:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError, match="lock for too long"):
            load_alone(tmp_path, lambda: pytest.fail("loaded beside its holder"), seconds=0.3)
        threading.Timer(0.5, lambda: holder.communicate("go\n")).start()
        found: list[bool] = []
        load_alone(tmp_path, lambda: found.append(lock.exists()))
        assert found == [False]
    finally:
        holder.kill()
        holder.wait()


def test_a_learner_told_to_stop_while_it_loads_leaves_no_lock(tmp_path: Path) -> None:
    learner = python(LOAD, tmp_path)
    try:
        assert learner.stdout and learner.stdout.readline() == "loading\n"
        learner.send_signal(signal.SIGTERM)
        assert learner.wait(30) == 1, "StopRequestedError, which the learner's main turns into 143"
    finally:
        learner.kill()
        learner.wait()
    assert not (tmp_path / "lock").exists()
