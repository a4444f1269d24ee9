"""`mmr1 eval` on the tiny model with every part real: killed in the middle, it goes on and asks nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mmr1.data_cli import main as data_main
from tests.conftest import REPOSITORY, free_port, free_ports

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

NUM_PROBLEMS = 600  # some seconds of answers: time enough to end it in the middle


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as output:
        command = [sys.executable, "-m", "mmr1_learner.held_out.command", str(config)]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def test_an_evaluation_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    digits, folder, log = tmp_path / "digits", tmp_path / "run/eval", tmp_path / "log"
    assert data_main(["digits", "--out", str(digits), "--num-train", "8", "--num-eval", str(NUM_PROBLEMS)]) == 0
    options = {
        "model": "examples/tiny_vlm",
        "train_file": str(digits / "train.json"),
        "eval_file": str(digits / "eval.json"),
        "run_dir": str(tmp_path / "run"),
        "max_prompt_length": 64,
        "max_completion_length": 12,
        "reward_port": free_port(),
        "rollout_port": free_port(),
        "learner_metrics_port": free_ports(2),
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(options))

    killed = start(config, log)
    try:
        while len(lines(folder / "samples.jsonl")) < 40:
            assert killed.poll() is None, log.read_text()[-3000:]
            time.sleep(0.02)
        started = psutil.Process(killed.pid).children(recursive=True)
    finally:
        killed.kill()
        killed.wait(30)
    assert not psutil.wait_procs(started, timeout=30)[1], "a process was left behind"
    kept = lines(folder / "samples.jsonl")
    assert 40 <= len(kept) < NUM_PROBLEMS and not (folder / "results.json").exists()

    process = start(config, log)
    try:
        assert process.wait(600) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
    assert f"{len(kept)} of {NUM_PROBLEMS} problems have been answered before" in log.read_text()
    answers = lines(folder / "samples.jsonl")
    assert [answer["problem"] for answer in answers] == list(range(NUM_PROBLEMS))
    assert all(answer in answers for answer in kept)
    assert {answer["version"] for answer in answers} == {"0.0"}, "the model's own weights, and no learner's"

    (task,) = json.loads((folder / "results.json").read_text())["tasks"]
    right = sum(answer["parsed"] == {"count": answer["solution"]} for answer in answers)
    assert (task["task"], task["num_problems"]) == ("counting", NUM_PROBLEMS)
    accuracy = task["metrics"]["accuracy"]
    assert accuracy["value"] == right / NUM_PROBLEMS
    assert 0.3 < accuracy["low"] < accuracy["value"] < accuracy["high"] < 0.7, "the small model counts about half right"
    assert accuracy["high"] - accuracy["low"] == pytest.approx(4 * (0.5 * 0.5 / NUM_PROBLEMS) ** 0.5, rel=0.15)
    assert "| **accuracy** |" in (folder / "results.md").read_text()
