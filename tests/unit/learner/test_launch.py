"""Ranks that somebody else starts: torchrun on one machine, on two, and DeepSpeed's launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmr1.errors import ConfigurationError
from mmr1_learner.plan import StepPlan
from mmr1_learner.train import _for_real_ranks
from tests.conftest import free_port
from tests.models import small_config
from tests.unit.learner.ranks_of_a_test import WORKER, environment, groups_with_images, run_ranks, wait_for

OPTIONS = {"num_generations": 4, "per_device_batch_size": 2, "gradient_accumulation_steps": 4, "zero_stage": 2}


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


@pytest.mark.engine
def test_two_nodes_make_the_step_of_two_ranks(tmp_path: Path, small_model: Path) -> None:
    """Two launchers that know each other by an address alone, a rank each: LOCAL_RANK is 0 on both."""
    groups = groups_with_images(tmp_path, [56, 84, 112])
    options = {**OPTIONS, "image_root": str(tmp_path)}
    scenario = {"name": "step", "options": options}
    expected = run_ranks(tmp_path / "ranks", small_model, groups, [scenario], 2)["step"]
    folder = tmp_path / "nodes"
    folder.mkdir()
    (folder / "plan").write_bytes(StepPlan(0, tuple(groups)).encode())
    port = str(free_port())
    worker = [str(WORKER), str(folder), str(small_model), json.dumps([scenario])]
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    wait_for(
        [
            subprocess.Popen([*torchrun(*where, "--node-rank", str(node)), *worker], env=environment())
            for node in range(2)
        ]
    )
    found = torch.load(folder / "step.pt", weights_only=True)
    assert found["report"]["loss"] == expected["report"]["loss"]
    for name, tensor in expected["parameters"].items():
        assert torch.equal(found["parameters"][name], tensor), name


def run_file(folder: Path, **options: Any) -> Path:
    path = folder / "run.yaml"
    values = {"model": "none", "train_file": "none.json", "num_steps": 1, "per_device_batch_size": 3, **options}
    path.write_text(yaml.safe_dump(values))
    return path


def test_torchrun_starts_the_learner_and_hears_what_is_wrong(tmp_path: Path) -> None:
    """The command that the documentation gives; the batch does not divide over the ranks that are really there."""
    config = run_file(tmp_path, num_generations=3)
    command = torchrun("--nproc-per-node", "2", "--master-port", str(free_port()), "-m", "mmr1_learner.train")
    ended = subprocess.run(
        [*command, "--config", str(config), "--num_generations", "4", "--learner_processes", "4"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode != 0
    line = "per_device_batch_size does not divide: 2 learner processes x per_device_batch_size 3 x "
    assert line in ended.stderr + ended.stdout


def test_deepspeeds_launcher_may_name_the_rank_on_the_command_line(tmp_path: Path) -> None:
    """It adds --local_rank, which is no option of a run: the error must be the model's, not that one's."""
    config = run_file(tmp_path, num_generations=3)
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "mmr1_learner.train",
            "--local_rank=0",
            "--config",
            str(config),
            "--num_generations",
            "2",
        ],
        env=environment(WORLD_SIZE="1"),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 2 and "per_device_batch_size does not divide" in ended.stderr


def test_the_number_of_ranks_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(Path("model"), per_device_batch_size=4, num_generations=4, learner_processes=2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert _for_real_ranks(config).generations_per_step == 4
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert _for_real_ranks(config).generations_per_step == 12
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ConfigurationError, match="WORLD_SIZE is 'many'; torchrun sets it"):
        _for_real_ranks(config)
