"""What the queue's figures are measured on: a redis-server of their own, and groups of a given size."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from mmr1.local.redis_server import find_redis_server, redis_command
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

RUN, RUN_ID = "bench", "of-this-folder"
NUM_ROLLOUTS, NUM_TOKENS, PROMPT_TOKENS = 8, 256, 320
VOCABULARY = 151_643
BYTES_PER_ID = 3  # the fewest whole bytes that hold an id of this vocabulary
BYTES_PER_LOGPROB = 4
VERSION = PolicyVersion(1, 0)
WORDS = ("the", "image", "shows", "a", "row", "of", "digits", "and", "each", "is", "counted", "once")


@dataclass(frozen=True)
class Figure:
    """One measured number against its limit. `at_least`: the limit is a floor."""

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        ratio = self.value / self.limit
        verdict = "" if self.holds else "   BEYOND THE LIMIT"
        return f"{self.name:<58}{self.value:>10.2f} {self.unit:<9} {bound} {self.limit:g}: ratio {ratio:.2f}{verdict}"


class Server:
    """A redis-server of this program's own, on one core."""

    def __init__(self, folder: Path, core: int) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = int(listener.getsockname()[1])
        self._command = redis_command(find_redis_server(), self._port, folder)
        self._core = core
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> float:
        """Seconds until it answers, its file loaded."""
        begun = time.perf_counter()
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        os.sched_setaffinity(self._process.pid, {self._core})
        client = self.client()
        while self._process.poll() is None:
            try:
                client.ping()
                return time.perf_counter() - begun
            except redis.ConnectionError:  # while it loads its file too
                time.sleep(0.02)
        raise RuntimeError("redis-server has ended")

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def cpu_seconds(self) -> float:
        """Of the process, so far."""
        info: Any = self.client().info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def memory(self) -> int:
        """Bytes of everything it holds, without its clients' buffers."""
        client: Any = self.client()
        return sum(int(client.memory_usage(key, samples=0)) for key in client.scan_iter())


@contextlib.contextmanager
def serving(core: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), core)
        try:
            yield server
        finally:
            server.kill()


def make_prompt(position: int) -> Prompt:
    return Prompt(
        id=PromptId(RUN, position),
        text="<|im_start|>user\nHow many digits are there?<|im_end|>\n<|im_start|>assistant\n",
        images=(ImageRef(f"images/{position:05d}.png", bytes(32)),),
        task="counting",
        problem="How many digits are there?",
        solution=3,
        num_generations=NUM_ROLLOUTS,
        sampling=Sampling(temperature=1.0, max_completion_length=NUM_TOKENS, seed=position),
        rewards=(RewardSpec("counting"), RewardSpec("format", 0.5)),
    )


def make_group(prompt: Prompt, rng: random.Random) -> Group:
    rollouts = tuple(
        Rollout(
            token_ids=tuple(rng.randrange(VOCABULARY) for _ in range(NUM_TOKENS)),
            logprobs=tuple(-rng.expovariate(2.0) for _ in range(NUM_TOKENS)),
            spans=(VersionSpan(VERSION, 0, NUM_TOKENS),),
            text=" ".join(rng.choices(WORDS, k=NUM_TOKENS)),
            finish_reason=FinishReason.STOP,
            score=Score(Outcome.OK, 1.25, {"counting": 1.0, "format": 0.5}),
        )
        for _ in range(NUM_ROLLOUTS)
    )
    return Group(
        prompt, tuple(rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)), rollouts, "rollout-0", 1.5, 0.1
    )


def content_bytes(group: Group) -> int:
    """Token ids, log-probabilities and texts, and nothing else."""
    ids = len(group.prompt_token_ids) + sum(len(rollout.token_ids) for rollout in group.rollouts)
    texts = len(group.prompt.text) + sum(len(rollout.text.encode()) for rollout in group.rollouts)
    return ids * BYTES_PER_ID + sum(len(rollout.logprobs) for rollout in group.rollouts) * BYTES_PER_LOGPROB + texts
