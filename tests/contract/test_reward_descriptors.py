"""The reward server as a process that may open few files: connections leave enough of them for its workers."""

from __future__ import annotations

import re
import resource
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.contract.test_reward_process import command, end, reward, start, until
from tests.unit.reward_server.reward_scorers import item


def files(soft: int, hard: int) -> Callable[[], None]:
    """What a process is started with: how many files it may open."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_server_opens_as_many_files_as_it_may() -> None:
    process, _ = start("--workers", "1", limits=files(128, 2048))
    try:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert re.search(r"^Max open files +2048 +2048 ", limits, re.MULTILINE), limits
    finally:
        assert end(process) == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connections_leave_descriptors_for_new_workers(loop: str) -> None:
    if loop == "asyncio":
        hidden = "import sys; sys.modules['uvloop'] = sys.modules['httptools'] = None"
    else:
        pytest.importorskip("uvloop")
        hidden = ""
    process, port = start("--workers", "1", *reward("EXITS"), limits=files(128, 128), first=hidden)
    idle = []
    try:
        with httpx.Client(trust_env=False, base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            for name in ("counting", "exits"):  # the connection stays open
                asked = {"items": [item(name).model_dump()]}
                assert client.post("/v1/score", json=asked).status_code == 200
            for _ in range(150):
                idle.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            refused = [one for one in idle[-50:] if is_closed(one)]
            assert len(refused) == 50 and not is_closed(idle[0])
            for name, outcome in (("exits", "verifier_error"), ("counting", "ok")) * 2:
                answer = client.post("/v1/score", json={"items": [item(name).model_dump()]})
                assert [one["outcome"] for one in answer.json()["results"]] == [outcome], answer.text
            while idle:
                idle.pop().close()
            until(lambda: answers(port), "taking connections again")
    finally:
        for one in idle:
            one.close()
        assert end(process) == 0


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed a connection on which nothing was sent."""
    connection.settimeout(0.5)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_too_few_files_for_the_workers_are_one_line_and_exit_code_2() -> None:
    argv = command("--port", "0", "--workers", "64")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, preexec_fn=files(256, 256))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "--workers 64: 256 files may be open" in done.stderr
