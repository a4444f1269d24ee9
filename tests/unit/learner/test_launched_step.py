"""All of `python -m mmr1_learner.train` on two ranks of a launcher: gate, step, update, checkpoint, export.

Redis, gRPC, the collective, DeepSpeed and the launcher are real; in vLLM's place stands a server that scores as the
learner does (scoring_server.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from mmr1.config import load_config
from mmr1.streams import read_ledger
from mmr1_learner.checkpoint import Checkpoints
from mmr1_learner.model import load_policy
from tests.conftest import free_port
from tests.unit.learner.ranks_of_a_test import environment
from tests.unit.learner.scoring_server import ScoringServer
from tests.unit.learner.test_launch import reward_url, run_file, torchrun
from tests.unit.learner.test_supervised import write_data

__all__ = ["reward_url"]

pytestmark = [pytest.mark.engine, pytest.mark.matrix]


def command(launcher: str, folder: Path, config: Path) -> list[str]:
    port = str(free_port())
    if launcher == "torchrun":
        start = torchrun("--nproc-per-node", "2", "--master-port", port, "-m")
    else:
        start = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", port]
        start += ["--hostfile", str(folder / "none"), "--module"]
    return [*start, "mmr1_learner.train", "--config", str(config)]


@pytest.mark.parametrize(("launcher", "zero_stage"), [("torchrun", 2), ("deepspeed", 3)])
def test_two_ranks_of_a_launcher_take_a_step(
    launcher: str, zero_stage: int, tmp_path: Path, small_model: Path, redis_url: str, reward_url: str
) -> None:
    """4 problems, 2 prompts a step, 4 completions each: every rank has its half, and what is sent is what is kept."""
    values: dict[str, Any] = {
        "model": str(small_model),
        "train_file": str(write_data(tmp_path) / "train.json"),
        "run": "test",
        "run_dir": str(tmp_path / "run"),
        "redis_url": redis_url,
        "reward_url": reward_url,
        "learner_metrics_port": free_port(),
        "num_steps": 1,
        "num_generations": 4,
        "per_device_batch_size": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "parity_prompts": 2,
        "parity_bound": 1e-5,
        "zero_stage": zero_stage,
    }
    file = run_file(tmp_path, **values)
    server = ScoringServer(load_config(file, ["--learner_processes", "2"]))
    before = {name: tensor.clone() for name, tensor in server.policy.named_tensors()}
    try:
        ended = subprocess.run(
            command(launcher, tmp_path, file), env=environment(), capture_output=True, text=True, timeout=240
        )
    finally:
        server.stop()
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    run_dir = tmp_path / "run"
    (record,) = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert record["step"] == 1 and record["grad_norm"] > 0 and record["probe_max_abs_dlogp"] < 1e-4
    assert list(record["update_phases"]) == ["closing", "weights", "sampling", "comparing", "opening"]
    assert all(seconds >= 0 for seconds in record["update_phases"].values())
    assert record["update_phases"]["weights"] > 0 and record["update_phases"]["comparing"] > 0
    with redis.Redis.from_url(redis_url) as client:
        ledger = read_ledger(client, "test")
    assert ledger.balanced and (ledger.trained, ledger.pending) == (2, 0)
    found = Checkpoints(run_dir / "checkpoints", 2).newest()
    assert found is not None and found[1].step == 1 and len(found[1].contained) == 2
    exported = dict(load_policy(str(run_dir / "model"), server.config).named_tensors())
    after = dict(server.policy.named_tensors())
    assert exported.keys() == after.keys() and all(torch.equal(exported[name], after[name]) for name in after)
    assert not all(torch.equal(before[name], after[name]) for name in after)
