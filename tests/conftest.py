"""Fixtures that every suite may use: a real Redis, free ports, and small nouns."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import redis

from mmr1.records import (
    FinishReason,
    Group,
    ImageRef,
    Outcome,
    PolicyVersion,
    Prompt,
    PromptId,
    RewardSpec,
    Rollout,
    Sampling,
    Score,
    VersionSpan,
)

REPOSITORY = Path(__file__).resolve().parent.parent
LOWEST_PORT, SHARE = 12_000, 2_000  # the first port that tests use, and how many a worker of the suite has

# `make test-reward` runs these, in an environment that has the reward server and nothing else of the project.
collect_ignore = ["alone"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured output may hold half a surrogate pair, which tests send on purpose and no worker could report."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "replace").decode()) for title, text in report.sections]
    return report


def free_port() -> int:
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on and nobody else is given.

    None is of those that the kernel gives out by itself: vLLM asks for such a port now and then, and between our asking
    and the program's listening, seconds later, the kernel may hand the same one out again.
    """
    for first in itertools.islice(_ports, 10_000):
        if first % SHARE + count > SHARE:
            continue  # it would reach into another worker's
        try:
            with contextlib.ExitStack() as held:
                for port in range(first, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        for _ in range(count - 1):
            next(_ports)
        return first
    raise AssertionError("no free port below the kernel's own")


def _ports_of_this_worker() -> Iterator[int]:
    """Each number of a share that no other worker of this suite has, round and round from a random place."""
    lowest_of_kernel = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    shares = lowest_of_kernel // SHARE - LOWEST_PORT // SHARE
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % shares
    begin, place = LOWEST_PORT + share * SHARE, random.SystemRandom().randrange(SHARE)
    while True:
        yield begin + place % SHARE
        place += 1


_ports = _ports_of_this_worker()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Redis of this test session's own."""
    binary = shutil.which("redis-server", path=str(Path(sys.executable).parent)) or shutil.which("redis-server")
    assert binary, "no redis-server: run `make setup`"
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(port=port)
    for _ in range(200):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.02)
    else:
        raise RuntimeError("redis-server did not come up")
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(10)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The same Redis, emptied."""
    redis.Redis.from_url(redis_server).flushall()
    return redis_server


def make_prompt(position: int = 0, attempt: int = 0, run: str = "test", num_generations: int = 2) -> Prompt:
    return Prompt(
        id=PromptId(run, position, attempt),
        text="<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n",
        images=(ImageRef("a/b.png", b"\x01" * 32),),
        task="counting",
        problem="How many?",
        solution=3,
        num_generations=num_generations,
        sampling=Sampling(temperature=0.9, max_completion_length=8, seed=7, forbidden_token_ids=(1, 5), stop=("\n",)),
        rewards=(RewardSpec("counting", 1.0, {"score": "graded"}), RewardSpec("format", 0.5)),
    )


def make_group(prompt: Prompt, rewards: tuple[float | None, ...] = (1.0, 0.0), number: int = 0) -> Group:
    version = PolicyVersion(1, number)
    rollouts = tuple(
        Rollout(
            token_ids=(7, 8, 9),
            logprobs=(-0.5, -0.25, -1.0),
            spans=(VersionSpan(version, 0, 3),),
            text="3",
            finish_reason=FinishReason.STOP,
            score=Score(Outcome.OK, reward, {"counting": reward})
            if reward is not None
            else Score(Outcome.TIMEOUT, None),
        )
        for reward in rewards
    )
    return Group(prompt, (1, 2, 3), rollouts, "rollout-0", 0.5, 0.25)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a randomly initialised small Qwen2.5-VL, its tokenizer and its processor."""
    from mmr1_learner.tiny_model import build

    folder = tmp_path_factory.mktemp("small_model")
    build(folder, seed=0)
    return folder
