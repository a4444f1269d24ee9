"""The two sides of `rollout_gpu.py`: a rollout server with what a run puts around it, and the offline engine's process.

Both answer `generate(prompts)` with seconds and counts. Neither knows how often it is asked, or what is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from mmr1.images import ImageStore
from mmr1.local.redis_server import find_redis_server, redis_command
from mmr1.records import Group, Prompt
from mmr1.streams import RunQueue
from mmr1.wire import encode_prompt
from tests.conftest import free_port
from tests.e2e.rollout_process import WEIGHTS, RolloutServer
from tests.gpu.played_learner import PlayedLearner
from tests.models import small_config

RUN = "rollout"
LOG_CHARS = 6000
LOAD_SECONDS = 280.0
POLL_SECONDS = 0.005
CHECK_SECONDS = 2.0  # between looks at what may be wrong
MAX_PROMPT_LENGTH = 1024  # one image of 896 x 896 and the question fit


class Failed(Exception):
    """A part did not start, or did not do what it was asked; the text says which, with the end of its log."""


def end(process: subprocess.Popen[Any]) -> None:
    """The process and all that it has started, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait(30)


class Ours:
    """Redis, a reward server and a rollout server with the learner's weights; `serve` starts, `end` ends them."""

    def __init__(self, folder: Path, model: Path, given: argparse.Namespace, ending: contextlib.ExitStack) -> None:
        self.folder, self._given, self._ending = folder, given, ending
        self._parts: dict[str, tuple[subprocess.Popen[Any], Path]] = {}  # and the log of each
        redis_port, reward_port = free_port(), free_port()
        self.options: dict[str, Any] = {
            "run": RUN,
            "model": str(model),
            "dtype": given.dtype,
            "train_file": str(folder / "images" / "train.json"),
            "num_steps": 1,
            "per_device_batch_size": given.generations,
            "num_generations": given.generations,
            "max_prompt_length": MAX_PROMPT_LENGTH,
            "max_completion_length": given.tokens,
            "max_concurrent_prompts": given.max_concurrent_prompts or given.prompts,
            "max_num_seqs": given.max_num_seqs or given.prompts * given.generations,
            "gpu_memory_utilization": given.gpu_memory_utilization,
            "rollout_threads": given.threads,
            "redis_url": f"redis://127.0.0.1:{redis_port}/0",
            "reward_url": f"http://127.0.0.1:{reward_port}",
            "weight_bucket_bytes": 2**26,
        }
        self.config_file = folder / "run.yaml"
        self.config_file.write_text(yaml.safe_dump(self.options))
        self._start("redis", redis_command(find_redis_server(), redis_port, folder))
        reward = [sys.executable, "-m", "mmr1_reward_server", "--host", "127.0.0.1", "--port", str(reward_port)]
        self._start("reward", reward)

    def _start(self, name: str, command: list[str]) -> None:
        log = self.folder / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self._ending.callback(end, process)
        self._parts[name] = process, log

    def start_server(self) -> None:
        self.server = RolloutServer(self.folder, **self.options)
        self._ending.callback(end, self.server.process)
        self._parts["rollout server"] = self.server.process, self.server.log

    def serve(self) -> tuple[int, ...]:
        """Wait for the server, give it the weights as a learner does, and forget the learner. Returns what no prompt
        may be answered with."""
        try:
            self.server.wait_healthy(WEIGHTS, LOAD_SECONDS)
        except AssertionError as error:
            raise Failed(f"the rollout server did not start: {error}") from None
        self._check()
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        config = small_config(**{**self.options, "model": Path(self.options["model"])})
        learner = PlayedLearner(config, ImageStore(self.folder / "images"), device)
        learner.update(probe=False)
        learner.sender.close()
        self.queue: RunQueue = learner.queue
        forbidden: tuple[int, ...] = learner.encoder.forbidden_token_ids
        del learner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # its memory is what the peer's engine measures as free
        return forbidden

    def generate(self, prompts: list[Prompt]) -> dict[str, Any]:
        began = time.perf_counter()
        for prompt in prompts:
            self.queue.feed(prompt)
        fed = time.perf_counter() - began
        groups: list[Group] = []
        checked = began
        while len(groups) < len(prompts):
            found = self.queue.read(len(prompts) - len(groups))
            groups += found
            if time.perf_counter() - checked > CHECK_SECONDS:
                checked = time.perf_counter()
                self._check(checked - began)
            if not found:
                time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - began
        self.queue.acknowledge([group.prompt.id for group in groups])
        at_once = self.options["max_concurrent_prompts"]
        return {"seconds": seconds, **account(groups), "feeding": fed, **where_time_went(groups, seconds, at_once)}

    def _check(self, waited: float = 0.0) -> None:
        """Raises Failed when a part has ended, a prompt is dead, or the groups are not there in time."""
        for name, (process, log) in self._parts.items():
            if process.poll() is not None:
                raise Failed(f"{name} ended with exit code {process.returncode}:\n{log.read_text()[-LOG_CHARS:]}")
        dead = waited > CHECK_SECONDS and self.queue.ledger().dead
        if dead or waited > self._given.limit:
            why = f"prompts are dead: {dead}" if dead else f"not all groups came in {waited:.0f} s"
            raise Failed(f"{why}:\n{self.server.log.read_text()[-LOG_CHARS:]}")


def account(groups: list[Group]) -> dict[str, Any]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    unscored = sum(rollout.score is None or not rollout.score.outcome.has_reward for rollout in rollouts)
    return {
        "completions": len(rollouts),
        "tokens": sum(len(rollout.token_ids) for rollout in rollouts),
        "prompt_tokens": sum(len(group.prompt_token_ids) for group in groups),
        "without_reward": unscored,
    }


def where_time_went(groups: list[Group], seconds: float, at_once: int) -> dict[str, float]:
    """Medians of a group's sampling and scoring; `around` is what the longest sampling leaves of the whole, said only
    where all groups are sampled at once."""
    sampling = [group.generate_seconds for group in groups]
    medians = {
        "sampling": statistics.median(sampling),
        "scoring": statistics.median(group.score_seconds for group in groups),
    }
    return medians | ({"around": seconds - max(sampling)} if at_once >= len(groups) else {})


class Peer:
    """One process of `rollout_peer.py`. It imports vllm at once, and loads when told to."""

    def __init__(self, ours: Ours, kind: str, ending: contextlib.ExitStack) -> None:
        self.name = f"peer, {kind}"
        self._folder = ours.folder
        self._log = ours.folder / f"peer-{kind}.log"
        program = Path(__file__).with_name("rollout_peer.py")
        command = [sys.executable, str(program), "--config", str(ours.config_file), "--kind", kind]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
            )
        ending.callback(end, self._process)

    def load(self) -> dict[str, Any]:
        return self._ask({"do": "load"})

    def generate(self, prompts: list[Prompt]) -> dict[str, Any]:
        file = self._folder / "prompts"
        file.write_text("\n".join(encode_prompt(prompt).hex() for prompt in prompts))
        return self._ask({"do": "generate", "prompts": str(file)})

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(what), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self.name} ended at {what['do']}:\n{self._log.read_text()[-LOG_CHARS:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer
