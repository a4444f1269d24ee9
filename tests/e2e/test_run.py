"""Whole runs with every part real: Redis, vLLM, DeepSpeed, reward server, supervisor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mmr1.data_cli import main as data_main
from mmr1.preflight import check_model
from mmr1.report import build
from tests.conftest import REPOSITORY, free_port, free_ports
from tests.e2e.rollout_process import WEIGHTS, RolloutServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

NUM_STEPS = 12
PROMPTS_PER_STEP = 4


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    assert data_main(["digits", "--out", str(folder), "--num-train", "32", "--num-eval", "16"]) == 0
    return folder


def options(digits: Path, run_dir: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": str(REPOSITORY / "examples/tiny_vlm"),
        "train_file": str(digits / "train.json"),
        "eval_file": str(digits / "eval.json"),
        "run": run_dir.name,
        "run_dir": str(run_dir),
        "num_steps": NUM_STEPS,
        "num_generations": 4,
        "per_device_batch_size": 8,
        "learner_processes": 2,
        "zero_stage": 2,
        "checkpoint_every": 2,
        "learning_rate": 1e-4,
        "max_prompt_length": 64,
        "max_completion_length": 12,
        "rewards": ["counting=1.0", "format=0.2"],
        "k3_weight": 0.01,
        "lease_seconds": 5.0,
        "redis_port": free_port(),
        "reward_port": free_port(),
        "rollout_port": free_ports(2),
        "learner_metrics_port": free_ports(3),
        "learner_master_port": free_port(),
        **more,
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def learner_ranks(supervisor: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in supervisor.children(recursive=True):
        try:
            if "mmr1_learner.train" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.environ().get("RANK", ""))


def test_a_run_whose_learner_is_killed_trains_every_group_once_and_passes_the_gate_again(
    digits: Path, tmp_path: Path
) -> None:
    """Two learner ranks under ZeRO-2, two rollout servers; one rank is killed with SIGKILL in the middle of the run."""
    run_dir = tmp_path / "killed"
    config = tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump(options(digits, run_dir, rollout_replicas=2, max_concurrent_prompts=2, proof=True))
    )
    with (tmp_path / "up.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mmr1.cli", "up", str(config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env={**os.environ, "MMR1_LOG_JSON": "1"},
        )
    try:
        while len(lines(run_dir / "metrics.jsonl")) < 3:
            assert process.poll() is None, (tmp_path / "up.log").read_text()[-4000:]
            time.sleep(0.05)
        ranks = learner_ranks(psutil.Process(process.pid))
        assert len(ranks) == 2
        ranks[1].kill()
        everyone = psutil.Process(process.pid).children(recursive=True)
        code = process.wait(600)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    assert code == 0, (tmp_path / "up.log").read_text()[-4000:]
    assert not psutil.wait_procs(everyone, timeout=5)[1], "a process was left behind"

    metrics = lines(run_dir / "metrics.jsonl")
    assert [record["step"] for record in metrics] == list(range(1, NUM_STEPS + 1))
    assert all(record["probe_max_abs_dlogp"] < 1e-4 for record in metrics)
    assert max(record["lag_max"] for record in metrics) <= 1
    assert {record["policy_version"].split(".")[0] for record in metrics} == {"1", "2"}

    ledger = json.loads((run_dir / "ledger.json").read_text())
    assert ledger["balanced"] and ledger["pending"] == 0
    assert ledger["trained"] == NUM_STEPS * PROMPTS_PER_STEP
    trained = lines(run_dir / "proof.jsonl")
    assert [record["step"] for record in trained] == list(range(1, NUM_STEPS + 1))
    places = sorted(int(id_.split("/")[0]) for record in trained for id_ in record["groups"])
    assert places == list(range(NUM_STEPS * PROMPTS_PER_STEP)), "each group of the data order once, as without a kill"

    gates = json.loads((run_dir / "parity.json").read_text())
    assert [gate["incarnation"] for gate in gates] == [1, 1, 2, 2], "each server, in each life"
    assert all(gate["mean_abs_dlogp"] < 1e-3 for gate in gates)
    assert {line["server"] for line in lines(run_dir / "completions.jsonl")} == {"rollout-0", "rollout-1"}

    evaluations = lines(run_dir / "evaluations.jsonl")
    assert [(e["name"], e["mode"]) for e in evaluations] == [
        (name, mode) for name in ("before", "after") for mode in ("greedy", "sampled")
    ]
    result = build(run_dir)
    assert result.ledger["trained"] == ledger["trained"]
    for name in ("result.json", "reward.png", "report.html"):
        assert (run_dir / name).stat().st_size > 0
    check_model(str(run_dir / "model"))
    check_logs(run_dir / "logs", run_dir.name)


def check_logs(folder: Path, run: str) -> None:
    """Each service's own lines are JSON and name it; other libraries write as they do."""
    for service in ("reward", "rollout-0", "rollout-1", "learner-0"):
        records = [
            json.loads(line)
            for path in folder.glob("*.log")
            for line in path.read_text().splitlines()
            if line.startswith("{") and f'"service": "{service}"' in line
        ]
        assert records and {record.get("run") for record in records} == {None if service == "reward" else run}, service


@pytest.mark.chaos
def test_a_run_stopped_while_a_rollout_server_is_frozen_leaves_a_last_checkpoint(digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "frozen"
    config = tmp_path / "run.yaml"
    given = options(digits, run_dir, learner_processes=1, zero_stage=0, per_device_batch_size=16, num_steps=1000)
    config.write_text(yaml.safe_dump(given | {"checkpoint_every": 1000, "eval_at_start": False}))
    with (tmp_path / "up.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mmr1.cli", "up", str(config)], stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY
        )
    try:
        while len(lines(run_dir / "metrics.jsonl")) < 2:
            assert process.poll() is None, (tmp_path / "up.log").read_text()[-4000:]
            time.sleep(0.05)
        everyone = psutil.Process(process.pid).children(recursive=True)
        (server,) = [one for one in everyone if "mmr1_rollout_server" in one.cmdline()]
        for one in [server, *server.children(recursive=True)]:
            one.suspend()
        time.sleep(2.0)
        process.terminate()
        code = process.wait(180)  # a frozen server has its whole deadline
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(60)
    assert code == 143, (tmp_path / "up.log").read_text()[-4000:]
    assert not psutil.wait_procs(everyone, timeout=5)[1], "a process was left behind"
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{len(lines(run_dir / 'metrics.jsonl')):06d}"


def test_a_corrupted_weight_makes_the_learner_refuse_to_train(digits: Path, tmp_path: Path, redis_url: str) -> None:
    """Fingerprints agree, for what was sent arrived; only the parity gate can see it. Exit code 2, no step."""
    run_dir = tmp_path / "corrupted"
    given = options(digits, run_dir, learner_processes=1, zero_stage=0, per_device_batch_size=16, redis_url=redis_url)
    reward = subprocess.Popen([sys.executable, "-m", "mmr1_reward_server", "--port", str(given["reward_port"])])
    server = RolloutServer(tmp_path, **given)
    try:
        server.wait_healthy(WEIGHTS)
        learner = subprocess.run(
            [sys.executable, "-m", "tests.e2e.corrupted_learner", "--config", str(tmp_path / "rollout-0.yaml")],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=REPOSITORY,
            env={**os.environ, "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        )
    finally:
        reward.terminate()
        reward.wait(30)
        server.terminate()
    assert "corrupted model.visual" in learner.stdout
    assert learner.returncode == 2, learner.stderr[-3000:]
    (line,) = [line for line in learner.stderr.splitlines() if line.startswith("mmr1: error:")]
    assert "parity gate: mean |delta log p|" in line
    assert lines(run_dir / "metrics.jsonl") == []
