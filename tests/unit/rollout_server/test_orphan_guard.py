"""The engine's processes end when the server's is killed: with three real processes in their places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

# The server starts the core, which starts the worker, which starts the guard; each writes its id and waits.
PROGRAM = """
import os, subprocess, sys, time
role, folder = sys.argv[1:]
if role == "worker":
    from mmr1_rollout_server import orphan_guard
    orphan_guard.guard()
if role == "server":
    os.environ["MMR1_ROLLOUT_SERVER_PID"] = str(os.getpid())
following = {"server": "core", "core": "worker"}.get(role)
if following:
    subprocess.Popen([sys.executable, __file__, following, folder])
open(f"{folder}/{role}.part", "w").write(str(os.getpid()))
os.rename(f"{folder}/{role}.part", f"{folder}/{role}")
time.sleep(60)
"""


def test_core_and_worker_end_with_a_killed_server(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    server = subprocess.Popen([sys.executable, str(program), "server", str(tmp_path)])
    while not all((tmp_path / role).exists() for role in ("core", "worker")):
        assert server.poll() is None
    others = [psutil.Process(int((tmp_path / role).read_text())) for role in ("core", "worker")]
    os.kill(server.pid, 9)
    server.wait(5)
    _, alive = psutil.wait_procs(others, timeout=10)
    assert not alive
