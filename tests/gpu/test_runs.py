"""Whole runs on GPUs with every part real: the counting demo learns, and several ranks train with several servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mmr1.config import load_config
from mmr1.data_cli import main as data_main
from mmr1.rollout_access import RolloutAccess
from mmr1.rollout_client import RolloutClient
from tests.conftest import REPOSITORY, free_port, free_ports
from tests.gpu.conftest import GPUS

pytestmark = pytest.mark.timeout(500)
STEPS = 10


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    assert data_main(["digits", "--out", str(folder), "--num-train", "256", "--num-eval", "64"]) == 0
    return folder


class Run:
    """`mmr1 up` on these GPUs, in the background."""

    def __init__(self, folder: Path, gpus: list[str], **options: Any) -> None:
        self.folder = folder / "run"
        given = {
            **yaml.safe_load((REPOSITORY / "examples" / "counting.yaml").read_text()),
            "dtype": "bfloat16",
            "gpu_memory_utilization": 0.4,
            "run": folder.name[:60],
            "run_dir": str(self.folder),
            "redis_port": free_port(),
            "reward_port": free_port(),
            "rollout_port": free_ports(2),
            "learner_metrics_port": free_ports(3),
            "learner_master_port": free_port(),
            **options,
        }
        self.options = given
        config = folder / "run.yaml"
        config.write_text(yaml.safe_dump(given))
        self.log = folder / "up.log"
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mmr1.cli", "up", str(config)],
                stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment,
            )  # fmt: skip

    def ends(self, seconds: float) -> None:
        try:
            code = self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(40)
            if out := os.environ.get("OUT"):
                Path(out, f"up-{self.folder.parent.name[:40]}.log").write_text(self.log.read_text()[-200_000:])
        assert code == 0, self.log.read_text()[-4000:]

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def figures(self) -> dict[str, Any]:
        metrics = self.lines("metrics.jsonl")
        took = [step["seconds"] for step in metrics[2:]]
        gates = json.loads((self.folder / "parity.json").read_text())
        return {
            "steps": len(metrics),
            "seconds_a_step": sorted(took)[len(took) // 2] if took else None,
            "last": {name: value for name, value in metrics[-1].items() if "seconds" in name or "dlogp" in name},
            "gates": [[gate["mean_abs_dlogp"], gate["mismatch_kl"]] for gate in gates],
            "accuracy": {f"{e['name']} {e['mode']}": e["accuracy"] for e in self.lines("evaluations.jsonl")},
            "transports": sorted(set(said_transports(self.log.read_text()))),
        }


def said_transports(log: str) -> list[str]:
    return [word for line in log.splitlines() if "transfer group formed" in line for word in ("nccl", "ipc", "gloo")
            if word in line]  # fmt: skip


@pytest.mark.parametrize("count", [pytest.param(1), pytest.param(2, marks=pytest.mark.gpus(2))])
def test_the_counting_demo_learns(count: int, tmp_path: Path, record: Callable[..., None]) -> None:
    """One GPU: weights through CUDA's interprocess memory. Two: over NCCL."""
    data = tmp_path / "digits"
    assert data_main(["digits", "--task", "counting", "--out", str(data)]) == 0
    began = time.monotonic()
    run = Run(tmp_path, GPUS[:count], train_file=str(data / "train.json"), eval_file=str(data / "eval.json"))
    run.ends(400)
    figures = run.figures()
    record(gpus=count, seconds=time.monotonic() - began, **figures)
    assert figures["transports"] == [{1: "ipc", 2: "nccl"}[count]]
    for mode in ("greedy", "sampled"):
        assert figures["accuracy"][f"after {mode}"] > figures["accuracy"][f"before {mode}"] + 0.05


@pytest.mark.gpus(4)
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_and_two_servers_one_of_which_is_killed_in_an_update(
    stage: int, digits: Path, tmp_path: Path, record: Callable[..., None]
) -> None:
    """The supervisor starts it again; no step waits for the deadline of a phase, and the run ends well."""
    run = Run(
        tmp_path, GPUS[:4], train_file=str(digits / "train.json"), eval_file=str(digits / "eval.json"),
        num_steps=STEPS * 3, per_device_batch_size=64, learner_processes=2, zero_stage=stage, rollout_replicas=2,
        rewards=["counting=1.0", "format=0.2"], eval_at_start=False, lease_seconds=5.0,
    )  # fmt: skip
    killed: list[float] = []
    striking = threading.Thread(target=kill_in_update, args=(run, 3, killed), daemon=True)
    striking.start()
    run.ends(300)
    figures = run.figures()
    metrics = run.lines("metrics.jsonl")
    slowest = max(step["seconds"] for step in metrics[1:])
    record(stage=stage, killed=len(killed), slowest_step_seconds=slowest, **figures)
    assert killed, "the server was never seen in an update"
    assert [step["step"] for step in metrics] == list(range(1, STEPS * 3 + 1))
    assert figures["transports"] == ["nccl"]
    assert slowest < 60.0
    assert json.loads((run.folder / "ledger.json").read_text())["balanced"]


@pytest.mark.gpus(3)
def test_a_server_cuts_the_model_over_two_gpus(digits: Path, tmp_path: Path, record: Callable[..., None]) -> None:
    run = Run(
        tmp_path, GPUS[-3:], train_file=str(digits / "train.json"), eval_file=str(digits / "eval.json"),
        num_steps=STEPS, per_device_batch_size=64, rollout_tensor_parallel_size=2, eval_at_start=False,
    )  # fmt: skip
    run.ends(300)
    figures = run.figures()
    record(**figures)
    assert figures["transports"] == ["nccl"]
    assert figures["steps"] == STEPS


def kill_in_update(run: Run, after_steps: int, killed: list[float]) -> None:
    """Kill rollout-1 and its engine the moment it says that it is being updated, once some steps have been made."""
    while len(run.lines("metrics.jsonl")) < after_steps:
        time.sleep(0.1)
    access = RolloutAccess.from_config(load_config(run.folder / "config.yaml"))
    client = RolloutClient(f"127.0.0.1:{run.options['rollout_port'] + 1}", run.options["run"], 0, access)
    while run.process.poll() is None:
        try:
            if client.status(1.0).state != "updating":
                continue
        except Exception:  # it may be gone for a moment, and is asked again
            time.sleep(0.5)
            continue
        for process in psutil.Process(run.process.pid).children(recursive=True):
            if "--server-id" in process.cmdline() and "rollout-1" in process.cmdline():
                for one in [*process.children(recursive=True), process]:
                    one.kill()
                killed.append(time.monotonic())
                return
