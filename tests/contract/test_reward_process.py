"""The reward server as a process of its own: ports, signals, limits over a real socket, and what it imports."""

from __future__ import annotations

import asyncio
import http.client
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from mmr1_reward_server.api import Item, Outcome
from mmr1_reward_server.client import RewardClient

SLOW_SERVER = """
import sys, time
from pydantic import TypeAdapter
from mmr1_reward_server.__main__ import bind, serve
from mmr1_reward_server.api import Example, Item, Outcome, Result
from mmr1_reward_server.logs import configure_logging
from mmr1_reward_server.registry import Params, Registry, Task, Verdict
from mmr1_reward_server.settings import Settings

def slow(sample):
    time.sleep(sample.solution)
    return Verdict(1.0)

item = Item(id="1", task="slow", response="", solution=0)
example = Example(item=item, result=Result(id="1", outcome="ok", reward=1))
task = Task("slow", "", "", 0.0, TypeAdapter(float), Params, slow, example)
settings = Settings(port=0, item_deadline_seconds=1.5)
configure_logging()
sys.exit(serve(settings, Registry([task]), bind(settings.host, settings.port)))
"""


def start(*command: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(r"event=listening .*port=(\d+)", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()  # so that the pipe never fills
            return process, int(match.group(1))
    raise AssertionError(f"the server ended with {process.wait()}")


def end(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(20)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    process, port = start("-m", "mmr1_reward_server", "--port", "0", "--max-body-bytes", "100000")
    yield port
    assert end(process) == 0


def test_scores_over_a_socket(port: int) -> None:
    async def call() -> list[float | None]:
        async with RewardClient(f"http://127.0.0.1:{port}", 20) as client:
            item = Item(id="1", task="counting", response="<answer>3</answer>", solution=3)
            batches = await asyncio.gather(*(client.score([item] * 16) for _ in range(20)))
            return [result.reward for batch in batches for result in batch]

    assert asyncio.run(call()) == [1.0] * 320
    assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).json() == {"status": "ready"}


@pytest.mark.parametrize("declared", [True, False])
def test_an_oversized_body_is_refused_over_a_socket(port: int, declared: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = b" " * 150_000
    connection.request("POST", "/v1/score", body if declared else iter([body]), encode_chunked=not declared)
    response = connection.getresponse()
    assert response.status == 413
    assert b"body_too_large" in response.read()
    connection.close()


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = str(holder.getsockname()[1])
        command = [sys.executable, "-m", "mmr1_reward_server", "--port", taken]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"port {taken}: the port is in use" in done.stderr and "--port" in done.stderr


@pytest.mark.parametrize("argv", [["--prot", "1"], ["--port", "x"], ["--host", "no.such.host.invalid"]])
def test_wrong_options_are_one_line_and_exit_code_2(argv: list[str]) -> None:
    command = [sys.executable, "-m", "mmr1_reward_server", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert argv[0] in done.stderr


def test_sigterm_drains_and_a_stuck_scorer_does_not_hold_the_process() -> None:
    process, port = start("-c", SLOW_SERVER)

    async def call() -> list[Outcome]:
        async with RewardClient(f"http://127.0.0.1:{port}", 20) as client:
            stuck = await client.score([Item(id="0", task="slow", response="", solution=3600)])
            draining = asyncio.ensure_future(client.score([Item(id="1", task="slow", response="", solution=1)]))
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            return [result.outcome for result in stuck + await draining]

    assert asyncio.run(call()) == [Outcome.TIMEOUT, Outcome.OK]
    began = time.monotonic()
    assert process.wait(20) == 0
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("mmr1_reward_server.__main__", ["torch", "vllm", "grpc", "redis", "transformers", "mmr1", "mmr1_learner"]),
        ("mmr1_reward_server.client", ["torch", "vllm", "grpc", "redis", "mmr1", "fastapi", "starlette", "uvicorn"]),
    ],
)
def test_imports_stand_alone(module: str, forbidden: list[str]) -> None:
    program = f"""
        import sys, {module}
        sys.exit(", ".join(sorted(set({forbidden!r}) & set(sys.modules))))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) in ((0, ""), (1, "\n")), done.stderr
