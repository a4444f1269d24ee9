"""Where one of several ranks finds no number, all of them leave the step, and its dump can be run again by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmr1.errors import ConfigurationError
from mmr1_learner.dumps import read_dump
from mmr1_learner.plan import StepPlan
from tests.conftest import free_port
from tests.unit.learner.ranks_of_a_test import environment, groups_with_images, wait_for
from tests.unit.learner.test_replay import REPLAY, python

LORA = {"lora_rank": 2, "lora_alpha": 8, "lora_target_modules": ["q_proj", "down_proj"]}
REF = {"ref_sync_steps": 1, "ref_sync_alpha": 0.25}

Ran = tuple[Path, list[dict[str, str]]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Ran:
    """Two ranks, one scenario after the other; what each rank says of each. Here a hang would be a failure."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "plan").write_bytes(StepPlan(0, tuple(groups_with_images(folder, [56, 84, 112]))).encode())
    # Small tensors stay whole at stage 3 unless DeepSpeed is told otherwise: here every one shall be cut.
    file = folder / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    third = {"zero_stage": 3, "deepspeed_config_file": str(file)}
    scenarios: list[dict[str, Any]] = [
        {"name": "stage 2", "fault": "logprob", "options": {"zero_stage": 2}},
        {"name": "stage 3", "fault": "logprob", "options": {**third, **REF}},
        {"name": "lora", "fault": "", "options": {**third, **LORA, "dump_steps": [2]}},
        {"name": "gradient 2", "fault": "gradient", "options": {"zero_stage": 2}},
        {"name": "gradient 3", "fault": "gradient", "options": third},
        {"name": "bfloat16 gradient 2", "fault": "gradient", "options": {"zero_stage": 2, "dtype": "bfloat16"}},
    ]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    worker = str(Path(__file__).with_name("rank_dump_worker.py"))
    command = [sys.executable, worker, str(folder), str(small_model), json.dumps(scenarios)]
    wait_for(
        [
            subprocess.Popen(command, env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)))
            for rank in range(2)
        ]
    )
    return folder, [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(2)]


def dumps(folder: Path, name: str) -> list[Path]:
    return sorted((folder / name / "dumps").iterdir())


@pytest.mark.engine
@pytest.mark.matrix
@pytest.mark.parametrize("name", ["stage 2", "stage 3"])
def test_all_ranks_leave_and_the_one_at_fault_dumps(ran: Ran, name: str) -> None:
    folder, results = ran
    (dump,) = dumps(folder, name)
    found = read_dump(dump)
    at_fault, other = results[found.rank][name], results[1 - found.rank][name]
    assert at_fault == f"step 2: loss nan from groups 2/0; `mmr1 replay {dump}` runs it again"
    assert other == "step 2: the loss of another rank is not finite"
    parameters, reference = found.parameters(), found.reference()
    assert parameters and reference and parameters.keys() == reference.keys() and found.world_size == 2
    assert all(tensor.numel() > 0 for tensor in parameters.values()), "whole, not what a rank holds"


@pytest.mark.engine
@pytest.mark.matrix
@pytest.mark.parametrize("name", ["gradient 2", "gradient 3", "bfloat16 gradient 2"])
def test_a_gradient_that_is_no_number_leaves_the_parameters_where_they_were(ran: Ran, name: str) -> None:
    """DeepSpeed knows the norm within its step, and leaves the step out: the dump is of what the step began with."""
    folder, results = ran
    for rank, dump in enumerate(dumps(folder, name)):
        assert results[rank][name] == f"step 2: gradient norm inf; `mmr1 replay {dump}` runs it again"
        parameters, reference = read_dump(dump).parameters(), read_dump(dump).reference()
        assert parameters and reference and parameters.keys() == reference.keys()
        assert all(parameters[key].equal(reference[key]) for key in reference)


@pytest.mark.engine
@pytest.mark.matrix
@pytest.mark.parametrize("name", ["lora", "gradient 2", "gradient 3"])
def test_the_model_is_written_once(ran: Ran, name: str, tmp_path: Path) -> None:
    """By the first rank that dumps; the others' dumps say where it is, and what is missing when it is not there."""
    folder, _ = ran
    first, second = dumps(folder, name)
    assert list(first.glob("parameters-*")) and not list(second.glob("parameters-*")) + list(second.glob("reference-*"))
    ours, theirs = read_dump(first).parameters(), read_dump(second).parameters()
    assert ours and theirs and all(ours[key].equal(theirs[key]) for key in ours)
    alone = tmp_path / second.name
    shutil.copytree(second, alone)
    with pytest.raises(ConfigurationError, match=rf"{alone}: its parameters lie in the dump {first.name} of another"):
        read_dump(alone).parameters()


@pytest.mark.engine
@pytest.mark.matrix
def test_replay_of_what_ranks_left(ran: Ran) -> None:
    """One process, at no stage: each group's loss is what the rank found. Adapters and a moved reference included."""
    folder, results = ran
    assert results[0]["lora"] == results[1]["lora"] == ""
    names = ["stage 2", "stage 3", "lora", "gradient 3"]
    found = [dump for name in names for dump in dumps(folder, name)]
    assert len(found) == 6 and read_dump(dumps(folder, "lora")[0]).reference() is None
    printed = python("-c", REPLAY, *map(str, found))
    assert printed.count("exit code 0") == 6, printed
    assert printed.count("the same, bit for bit") + printed.count("the same to 0.0001") == 6, printed
