"""A whole stack under `mmr1 up`, with an agent in every process: starts it, strikes at it, and keeps watch.

Two rollout servers, so that the run can go on without one. All of it is real; the agent only sends signals and keeps a
diary. What is concluded from the diary stands in proof.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import redis
import yaml

from mmr1.streams import read_ledger
from tests.chaos.faults import AT_RANDOM, Fault
from tests.chaos.proof import seconds_to_step
from tests.conftest import REPOSITORY, free_port, free_ports

AGENT = Path(__file__).resolve().parent / "agent"
PROMPTS_PER_STEP = 4
REACH_SECONDS = 240.0  # for a phase to be reached: a killed rollout server loads for a minute on two busy cores
START_SECONDS = 480.0  # two engines load, on two cores that others may use too
AWAKE_SECONDS = 2.0
STEP_SECONDS = 240.0  # after a fault, without a step: it hangs
PROGRAMS = {
    "learner": "mmr1_learner.train",
    "rollout": "mmr1_rollout_server",
    "reward": "mmr1_reward_server",
    "redis": "redis-server",
}
# Phases that a service itself reaches: which of several processes is struck is decided there.
OWN = {
    "rollout": ("prompt taken", "mid-generation", "before publish", "after publish", "weights arriving"),
    "learner": ("mid-step", "mid-checkpoint", "between checkpoint and ack", "weights leaving"),
    "wire": ("bytes leaving",),
}


class HungError(AssertionError):
    """No optimizer step in time after a fault."""


class EndedError(AssertionError):
    """The run ended by itself."""


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault that was inflicted at `time`, and how long the run took to the end of a step that began after it.

    `awake_seconds` is the same from the moment that what was frozen went on; None for what was not.
    """

    fault: Fault
    time: float
    seconds: float
    awake_seconds: float | None

    def __str__(self) -> str:
        awake = "" if self.awake_seconds is None else f", {self.awake_seconds:.1f} s after it woke"
        return f"{self.fault}: next step after {self.seconds:.1f} s{awake}"


class Stack:
    """One run. Leave the context, and nothing of it is alive."""

    def __init__(self, folder: Path, digits: Path, seed: int, mutations: tuple[str, ...] = (), **options: Any) -> None:
        self.run_dir = folder / "run"
        self._folder = folder
        self._chaos = folder / "chaos"
        self._chaos.mkdir(parents=True)
        self._log = (folder / "up.log").open("a")
        self._mutations = mutations
        self._rng = random.Random(seed)
        self._frozen: dict[int, threading.Timer] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.unbalanced: list[dict[str, Any]] = []
        self.looks = 0
        self._over = threading.Event()
        self._options = make_options(folder, self.run_dir, digits, **options)

    def __enter__(self) -> Stack:
        self._watcher = threading.Thread(target=self._watch_ledger, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._watcher.join(10)
        self._thaw()
        if self._process is not None and self._process.poll() is None:
            everyone = psutil.Process(self._process.pid).children(recursive=True)
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(150)
            for one in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            self._process.kill()
            self._process.wait()
        self._log.close()

    def start(self, **options: Any) -> None:
        """Begin, or go on, and wait for the first step of this life."""
        config = self._folder / "run.yaml"
        config.write_text(yaml.safe_dump(self._options | options))
        path = os.pathsep.join(filter(None, [str(AGENT), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, "MMR1_CHAOS": str(self._chaos)}
        environment["MMR1_CHAOS_MUTATIONS"] = ",".join(self._mutations)
        began = time.time()
        command = [sys.executable, "-m", "mmr1.cli", "up", str(config)]
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment
        )
        self._wait_for_step(began, START_SECONDS)

    def inflict(self, fault: Fault) -> Blow:
        """Strike, let a frozen one go on in time, and wait for the next whole optimizer step."""
        struck = self._strike_at_random(fault) if fault.phase == AT_RANDOM else self._strike_at_phase(fault)
        at, awake = struck["time"], None
        if fault.frozen_seconds:
            timer = threading.Timer(fault.frozen_seconds, _send, (struck["pid"], signal.SIGCONT))
            self._frozen[struck["pid"]] = timer
            timer.start()
        seconds = self._wait_for_step(at)
        if fault.frozen_seconds:  # what wakes up has its say before anything else happens
            timer.join()
            woke = at + fault.frozen_seconds
            awake = self._wait_for_step(woke)
            time.sleep(max(0.0, woke + AWAKE_SECONDS - time.time()))
        return Blow(fault, at, seconds, awake)

    def stop(self) -> int:
        """SIGTERM, as a person would; the exit code."""
        assert self._process is not None
        self._thaw()
        self._process.terminate()
        return self._process.wait(180)

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    @property
    def diary(self) -> list[dict[str, Any]]:
        return read_lines(self._chaos / "diary.jsonl")

    @property
    def said(self) -> str:
        """The end of what `mmr1 up` has printed."""
        return (self._folder / "up.log").read_text()[-6000:]

    def _strike_at_phase(self, fault: Fault) -> dict[str, Any]:
        itself = fault.phase in OWN.get(fault.victim, ())
        armed = self._chaos / f"{fault.phase}.armed"
        struck = armed.with_suffix(".struck")
        for old in (struck, armed.with_suffix(".taken")):
            old.unlink(missing_ok=True)
        order = {"pid": None if itself else self._find(fault.victim).pid, "signal": int(fault.signal)}
        armed.with_suffix(".writing").write_text(json.dumps(order))
        armed.with_suffix(".writing").rename(armed)
        deadline = time.monotonic() + REACH_SECONDS
        while not struck.exists():
            self._check_alive()
            if time.monotonic() > deadline:
                raise HungError(f"{fault}: the phase was not reached in {REACH_SECONDS:.0f} s\n{self.said}")
            time.sleep(0.01)
        told: dict[str, Any] = json.loads(struck.read_text())
        return told

    def _strike_at_random(self, fault: Fault) -> dict[str, Any]:
        time.sleep(self._rng.uniform(0.0, 3.0))
        victim = self._find(fault.victim)
        now = time.time()
        _send(victim.pid, fault.signal)
        return {"time": now, "pid": victim.pid}

    def _find(self, victim: str) -> psutil.Process:
        """A process of that kind, of several a random one; waits while it is being started again."""
        assert self._process is not None
        deadline = time.monotonic() + REACH_SECONDS
        while time.monotonic() < deadline:
            self._check_alive()
            program = PROGRAMS["rollout" if victim == "engine" else victim]
            found = [one for one in psutil.Process(self._process.pid).children() if _runs(one, program)]
            if victim == "engine":
                found = [child for one in found for child in _children(one) if "EngineCore" in _title(child)]
            if found:
                return self._rng.choice(found)
            time.sleep(0.05)
        raise HungError(f"no {victim} is running\n{self.said}")

    def _wait_for_step(self, after: float, limit: float = STEP_SECONDS) -> float:
        """Seconds from `after` to the end of the first step that began later."""
        deadline = time.monotonic() + limit
        while True:
            seconds = seconds_to_step(self.diary, after)
            if seconds is not None:
                return seconds
            self._check_alive()
            if time.monotonic() > deadline:
                raise HungError(f"no optimizer step in {limit:.0f} s\n{self.said}")
            time.sleep(0.05)

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise EndedError(f"the run ended with {self._process.returncode}\n{self.said}")

    def _watch_ledger(self) -> None:
        """Look at the accounts all the while. A Redis that is down or frozen has none to show."""
        client = redis.Redis(port=self._options["redis_port"], socket_timeout=1.0, socket_connect_timeout=1.0)
        while not self._over.wait(0.02):
            with contextlib.suppress(redis.RedisError):
                ledger = read_ledger(client, self._options["run"])
                self.looks += 1
                if not ledger.balanced:
                    self.unbalanced.append(ledger.as_dict())

    def _thaw(self) -> None:
        for pid, timer in self._frozen.items():
            timer.cancel()
            _send(pid, signal.SIGCONT)
        self._frozen.clear()


def make_options(folder: Path, run_dir: Path, digits: Path, **more: Any) -> dict[str, Any]:
    """Short deadlines, so that a fault is noticed while somebody waits for it; otherwise a small ordinary run."""
    return {
        "model": str(REPOSITORY / "examples/tiny_vlm"),
        "train_file": str(digits / "train.json"),
        "run": f"chaos-{folder.name}",
        "run_dir": str(run_dir),
        "num_steps": 100_000,
        "num_generations": 4,
        "per_device_batch_size": 4 * PROMPTS_PER_STEP,
        "checkpoint_every": 3,
        "learning_rate": 1e-5,
        "max_prompt_length": 64,
        "max_completion_length": 12,
        "max_concurrent_prompts": 2,
        "rewards": ["counting"],
        "k3_weight": 0.01,
        "rollout_replicas": 2,
        "parity_prompts": 4,
        "max_restarts": 1000,
        "proof": True,
        "max_deliveries": 5,
        "lease_seconds": 4.0,
        "claim_idle_seconds": 5.0,
        "pause_deadline_seconds": 10.0,
        "weight_update_deadline_seconds": 10.0,
        "reward_deadline_seconds": 8.0,
        "redis_port": free_port(),
        "reward_port": free_port(),
        "rollout_port": free_ports(2),
        "learner_metrics_port": free_ports(3),
        "learner_master_port": free_port(),
        **more,
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Of a JSON Lines file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _runs(process: psutil.Process, program: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(program in word for word in process.cmdline())
    return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
