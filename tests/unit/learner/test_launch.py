"""Ranks that somebody else starts: the learner under torchrun and DeepSpeed's launcher, a step under two torchruns."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1_learner.errors import StopRequestedError
from mmr1_learner.plan import StepPlan
from mmr1_learner.train import main
from tests.conftest import free_port
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


class _Tasks(BaseHTTPRequestHandler):
    """A reward server as far as the learner asks it before a model loads."""

    def do_GET(self) -> None:
        schemas = {"solution_schema": {}, "params_schema": {}}
        task = {"name": "counting", "summary": "", "formula": "", "floor": 0.0, **schemas}
        self._answer({"tasks": [task], "version": "1"})

    def do_POST(self) -> None:
        """Of rows that are shown to it before a run."""
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        results = [{"id": item["id"], "outcome": "invalid_output", "reward": 0.0} for item in items]
        self._answer({"results": results, "version": "1"})

    def _answer(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def reward_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Tasks)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_launcher_starts_a_run_whose_batch_divides_over_its_ranks_alone(
    launcher: str, tmp_path: Path, reward_url: str
) -> None:
    """4 generations a rank, groups of 8: two ranks make a step, one would not. They get as far as the model.

    Rank 0 alone looks at it; the other waits for rank 0 and is ended by its launcher.
    """
    missing = tmp_path / "no_model"
    missing.mkdir()
    values = {"model": str(missing), "per_device_batch_size": 4, "num_generations": 8, "reward_url": reward_url}
    config = run_file(tmp_path, **values)
    port = str(free_port())
    start = {
        "torchrun": torchrun("--nproc-per-node", "2", "--master-port", port, "-m"),
        "deepspeed": [
            *(sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2"),
            *("--hostfile", str(tmp_path / "none"), "--master_port", port, "--module"),
        ],
    }[launcher]
    ended = subprocess.run(
        [*start, "mmr1_learner.train", "--config", str(config)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,  # the other rank by itself would wait for half an hour
    )
    output = ended.stderr + ended.stdout
    assert ended.returncode != 0
    line = f"mmr1: error: model {str(missing)!r} has no readable config.json"
    assert output.count(line) == 1 and "does not divide" not in output


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


@pytest.mark.parametrize(("ended", "code"), [(True, 0), (False, 143), (StopRequestedError(), 143)])
def test_only_a_run_that_is_done_ends_with_0(
    ended: bool | Exception, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only that is reported on."""

    def train(config: RunConfig) -> bool:
        if isinstance(ended, Exception):
            raise ended
        return ended

    reported: list[Path] = []
    monkeypatch.setattr("mmr1_learner.train.train", train)
    monkeypatch.setattr("mmr1_learner.train.check", lambda config: None)
    monkeypatch.setattr("mmr1.report.build", reported.append)
    file = run_file(tmp_path, per_device_batch_size=8, num_generations=8, run_dir=str(tmp_path / "run"))
    assert main(["--config", str(file), "--report"]) == code
    assert reported == ([tmp_path / "run"] if code == 0 else [])


def test_the_number_of_ranks_is_what_the_launcher_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `learner_processes` says, and before the batch is held against it."""
    started: list[RunConfig] = []
    monkeypatch.setattr("mmr1_learner.train.train", lambda config: started.append(config) or True)
    monkeypatch.setattr("mmr1_learner.train.check", lambda config: None)
    file = run_file(tmp_path, per_device_batch_size=4, num_generations=8, learner_processes=1)
    arguments = ["--config", str(file)]
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert main([*arguments, "--learner_processes", "3"]) == 0
    assert started[0].learner_processes == 6 and started[0].generations_per_step == 24
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigurationError, match="3 learner processes x per_device_batch_size 4"):
        main([*arguments, "--learner_processes", "2"])
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigurationError, match="1 learner processes x per_device_batch_size 4"):
        main([*arguments, "--learner_processes", "2"])
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ConfigurationError, match="WORLD_SIZE is 'many'; torchrun sets it"):
        main(arguments)
    assert len(started) == 1
