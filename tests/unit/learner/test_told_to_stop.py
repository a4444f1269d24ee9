"""A learner that is told to stop says by its exit code that the run is not done.

The learner's whole process, with real Redis, gRPC, gloo and DeepSpeed; in vLLM's place stands scoring_server.py. That
one which reaches its end says so is test_launched_step.py's.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmr1.config import load_config
from mmr1_learner.checkpoint import Checkpoints
from tests.conftest import free_port
from tests.unit.learner.ranks_of_a_test import environment
from tests.unit.learner.scoring_server import ScoringServer
from tests.unit.learner.test_launch import reward_url, run_file
from tests.unit.learner.test_supervised import write_data

__all__ = ["reward_url"]

pytestmark = pytest.mark.engine
STEP_SECONDS = 120


def start(file: Path) -> subprocess.Popen[bytes]:
    """One rank, as deploy/kubernetes starts it."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "mmr1_learner.train", "--config", str(file)]
    return subprocess.Popen(command, env=environment(**alone, MASTER_PORT=str(free_port())))


def test_between_steps_it_leaves_a_checkpoint_and_ends_with_143(
    tmp_path: Path, small_model: Path, redis_url: str, reward_url: str
) -> None:
    file = run_file(
        tmp_path,
        model=str(small_model),
        train_file=str(write_data(tmp_path) / "train.json"),
        run="test",
        run_dir=str(tmp_path / "run"),
        redis_url=redis_url,
        reward_url=reward_url,
        learner_metrics_port=free_port(),
        num_steps=1000,
        checkpoint_every=1000,
        num_generations=4,
        per_device_batch_size=4,
        max_completion_length=8,
        parity_prompts=2,
        parity_bound=1e-5,
    )
    server = ScoringServer(load_config(file))
    learner = start(file)
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + STEP_SECONDS
        while not metrics.exists() or not metrics.read_text():
            assert learner.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        learner.send_signal(signal.SIGTERM)
        assert learner.wait(STEP_SECONDS) == 128 + signal.SIGTERM
        assert Checkpoints(tmp_path / "run" / "checkpoints", 2).newest() is not None
        assert not (tmp_path / "run" / "model").exists()
    finally:
        learner.kill()
        server.stop()
