"""Whole runs on GPUs with every part real: the counting demo learns, and several ranks train with several servers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mmr1.config import load_config
from mmr1.data_cli import main as data_main
from mmr1_learner.weights import _CONSEQUENCES_SECONDS
from tests.chaos.stack import AGENT, read_lines
from tests.conftest import REPOSITORY, free_port, free_ports
from tests.gpu.conftest import GPUS

pytestmark = pytest.mark.timeout(500)
STEPS = 10
FAILED = re.compile(r"timestamp=(\S+?)Z? .*event=\"?weight[ _]update[ _]failed")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    assert data_main(["digits", "--out", str(folder), "--num-train", "256", "--num-eval", "64"]) == 0
    return folder


class Run:
    """`mmr1 up` on these GPUs, in the background. The agent of the chaos tests is in every process."""

    def __init__(self, folder: Path, gpus: list[str], **options: Any) -> None:
        self.folder = folder / "run"
        given = {
            **yaml.safe_load((REPOSITORY / "examples" / "counting.yaml").read_text()),
            "dtype": "bfloat16",
            "gpu_memory_utilization": 0.4,
            "weight_bucket_bytes": 2**15,  # hundreds of broadcasts, of a model of a few megabytes
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
        self.chaos = folder / "chaos"
        self.chaos.mkdir()
        path = os.pathsep.join(filter(None, [str(AGENT), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus), "PYTHONPATH": path}
        environment["MMR1_CHAOS"] = str(self.chaos)
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


@pytest.mark.gpus(2)
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_and_two_servers_one_of_which_is_killed_in_an_update(
    stage: int, digits: Path, tmp_path: Path, record: Callable[..., None]
) -> None:
    """The supervisor starts it again; no step waits for the deadline of a phase, and the run ends well.

    On four GPUs each has its own, and weights travel over NCCL. On two GPUs over gloo, and to the server that
    is left, which shares the learner's, through CUDA's interprocess memory.
    """
    steps = 2 * STEPS
    gpus = GPUS[:4] if len(GPUS) >= 4 else GPUS[:2]
    run = Run(
        tmp_path, gpus, train_file=str(digits / "train.json"), eval_file=str(digits / "eval.json"),
        num_steps=steps, per_device_batch_size=64, learner_processes=2, zero_stage=stage, rollout_replicas=2,
        eval_at_start=False, lease_seconds=5.0,
    )  # fmt: skip
    striking = threading.Thread(target=kill_in_update, args=(run, "rollout-1", 3), daemon=True)
    striking.start()
    run.ends(200)
    figures = run.figures()
    metrics = run.lines("metrics.jsonl")
    slowest = max(step["seconds"] for step in metrics[1:])
    noticed, committed = after_the_strike(run)
    record(stage=stage, noticed=noticed, committed=committed, slowest_step_seconds=slowest, **figures)
    assert [step["step"] for step in metrics] == list(range(1, steps + 1))
    assert figures["transports"] == (["nccl"] if len(gpus) == 4 else ["gloo", "ipc"])
    assert slowest < 60.0
    assert json.loads((run.folder / "ledger.json").read_text())["balanced"]


@pytest.mark.gpus(2)
def test_the_only_server_is_killed_in_the_middle_of_an_update_over_nccl(
    digits: Path, tmp_path: Path, record: Callable[..., None]
) -> None:
    """The learner leaves the hung communicator, waits for the server to be back, and goes on over NCCL."""
    run = Run(
        tmp_path, GPUS[:2], train_file=str(digits / "train.json"), eval_file=str(digits / "eval.json"),
        num_steps=STEPS, per_device_batch_size=64, eval_at_start=False, eval_at_end=False, lease_seconds=5.0,
    )  # fmt: skip
    striking = threading.Thread(target=kill_in_update, args=(run, "rollout-0", 3), daemon=True)
    striking.start()
    run.ends(240)
    figures = run.figures()
    slow = max(step["seconds"] for step in run.lines("metrics.jsonl")[1:])
    noticed, committed = after_the_strike(run)
    record(noticed=noticed, committed=committed, seconds_of_the_step_that_waited=slow, **figures)
    assert figures["transports"] == ["nccl"] and figures["steps"] == STEPS
    assert len(figures["gates"]) == 1, "the learner itself was not started again"


@pytest.mark.gpus(2)
def test_a_server_cuts_the_model_over_two_gpus(digits: Path, tmp_path: Path, record: Callable[..., None]) -> None:
    """With a third GPU, the learner's, weights travel over NCCL; on two over gloo."""
    run = Run(
        tmp_path, GPUS[:3], train_file=str(digits / "train.json"), eval_file=str(digits / "eval.json"),
        num_steps=STEPS, per_device_batch_size=64, rollout_tensor_parallel_size=2, eval_at_start=False,
        eval_at_end=False,
    )  # fmt: skip
    run.ends(200)
    figures = run.figures()
    record(**figures)
    assert figures["transports"] == (["nccl"] if len(GPUS) >= 3 else ["gloo"])
    assert figures["steps"] == STEPS


def kill_in_update(run: Run, name: str, after_steps: int) -> None:
    """Once some steps have been made: the server and its engine die when the next bucket of weights has been sent."""
    while len(run.lines("metrics.jsonl")) < after_steps:
        time.sleep(0.1)
    (server,) = [one for one in psutil.Process(run.process.pid).children() if name in one.cmdline()]
    beside = [one.pid for one in server.children(recursive=True)]
    order = {"pid": server.pid, "beside": beside, "signal": int(signal.SIGKILL)}
    armed = run.chaos / "bucket left.armed"
    armed.with_suffix(".writing").write_text(json.dumps(order))
    armed.with_suffix(".writing").rename(armed)


def after_the_strike(run: Run) -> tuple[float, float]:
    """Seconds until the attempt struck had failed, and until the next version was committed, by the run's own clock.

    Asserts that it failed before anything was committed, within the deadline of a phase and the rest for consequences.
    """
    struck = run.chaos / "bucket left.struck"
    assert struck.exists(), "no bucket of weights left after the server was to be killed"
    at = json.loads(struck.read_text())["time"]
    said = (match for line in run.log.read_text().splitlines() if (match := FAILED.search(line)))
    failed = [datetime.fromisoformat(f"{match[1]}+00:00").timestamp() - at for match in said]
    committed = min(
        e["time"] - at for e in read_lines(run.chaos / "diary.jsonl") if e.get("committed") and e["time"] > at
    )
    noticed = [seconds for seconds in failed if 0.0 < seconds < committed]
    assert noticed, f"no attempt failed between the kill and the next commit; failed at {failed}, committed {committed}"
    limit = load_config(run.folder / "config.yaml").weight_update_deadline_seconds
    assert noticed[0] <= limit + _CONSEQUENCES_SECONDS
    return noticed[0], committed
