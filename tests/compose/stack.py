"""The containers of docker-compose.yml under podman, for tests: started, asked, struck, taken down.

Without systemd nobody runs health checks by the clock, so a thread here does. It knows no more of the program than a
person with a terminal would.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "mmr1-test"
IMAGES = {
    "LEARNER_IMAGE": "localhost/mmr1-learner:0.1.0-cpu",
    "ROLLOUT_IMAGE": "localhost/mmr1-rollout-server:0.1.0-cpu",
    "REWARD_IMAGE": "localhost/mmr1-reward-server:0.1.0",
    "REDIS_IMAGE": "localhost/mmr1-test-redis:7.0",
    "PROMETHEUS_IMAGE": "localhost/mmr1-test-prometheus:2.42",
}
COMMAND_SECONDS = 900


def run(*command: str, check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
    """What the command prints. An end of another kind is the test's failure, with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass
class Stack:
    config: Path
    files: tuple[str, ...] = ("docker-compose.yml",)
    environment: dict[str, str] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)

    def compose(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        chosen = [part for name in self.files for part in ("-f", name)]
        environment = {**os.environ, **IMAGES, "RUN_CONFIG": str(self.config), **self.environment}
        program = [sys.executable, "-m", "podman_compose"]
        done = subprocess.run(
            [*program, "-p", PROJECT, *chosen, *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        self.output += [done.stdout, done.stderr]
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def down(self, *arguments: str) -> None:
        """With the profile, or what it started would stay.

        podman-compose forgets replicas beyond the first, so they are stopped by name first.
        """
        for name in self.containers():
            if not name.endswith("_1"):
                run("podman", "stop", "--time", "90", name)
                run("podman", "rm", name)
        self.compose("--profile", "monitoring", "down", *arguments)

    def containers(self, service: str | None = None) -> list[str]:
        label = ["--filter", f"label=com.docker.compose.project={PROJECT}"]
        if service:
            label += ["--filter", f"label=com.docker.compose.service={service}"]
        return run("podman", "ps", "-a", *label, "--format", "{{.Names}}").split()

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("podman", "inspect", name))[0]
        return found

    def state(self, service: str, index: int = 0) -> dict[str, Any]:
        names = self.containers(service)
        state: dict[str, Any] = self.inspect(names[index])["State"] if len(names) > index else {}
        return state

    def running(self, service: str) -> int:
        return sum(bool(self.inspect(name)["State"]["Running"]) for name in self.containers(service))

    def logs(self, service: str) -> str:
        texts = []
        for name in self.containers(service):
            done = subprocess.run(["podman", "logs", name], capture_output=True, text=True, check=False)
            texts.append(done.stdout + done.stderr)
        return "\n".join(texts)

    def volume(self, name: str) -> Path:
        return Path(run("podman", "volume", "inspect", f"{PROJECT}_{name}", "--format", "{{.Mountpoint}}").strip())

    def steps(self) -> list[dict[str, Any]]:
        """The optimizer steps on record."""
        with contextlib.suppress(AssertionError, FileNotFoundError):
            path = self.volume("runs") / "demo-counting" / "metrics.jsonl"
            return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        return []

    def strike(self, service: str, number: int = signal.SIGKILL) -> int:
        """Kills a container's first process from outside, as a lack of memory would. Returns its process id."""
        pid = int(self.state(service)["Pid"])
        assert pid > 1
        os.kill(pid, number)
        return pid


def until(what: str, condition: Callable[[], Any], stack: Stack, seconds: float) -> float:
    """Seconds until it holds; a failure shows the logs' ends."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            ends = {name: stack.logs(name)[-1500:] for name in ("learner", "rollout-server", "reward-server", "redis")}
            raise AssertionError(
                f"{what}: not within {seconds:.0f} s\n" + "\n".join(f"--- {n}\n{t}" for n, t in ends.items())
            )
        time.sleep(0.5)
    return time.monotonic() - began


@contextlib.contextmanager
def health_checks(stack: Stack) -> Iterator[None]:
    """What an engine with a timer does: runs each container's check again and again."""
    ended = threading.Event()

    def check() -> None:
        while not ended.wait(10.0):
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                for name in stack.containers():
                    details = stack.inspect(name)
                    if details["State"]["Running"] and (details["Config"].get("Healthcheck") or {}).get("Test"):
                        run("podman", "healthcheck", "run", name, check=False, seconds=30)

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
