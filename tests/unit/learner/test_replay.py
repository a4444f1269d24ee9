"""A step that is not finite stops with the group at fault and a dump, and `mmr1 replay` finds what the run found."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmr1.errors import ConfigurationError
from mmr1_learner.dumps import read_dump
from mmr1_learner.loss import TokenBatch, TokenStats, compute_loss
from mmr1_learner.plan import Sample
from mmr1_learner.replay import main as replay
from mmr1_learner.step_watch import group_losses
from tests.conftest import REPOSITORY
from tests.models import small_config

REPLAY = """
import json, sys
from mmr1_learner.replay import main
for folder in sys.argv[1:]:
    print("exit code", main([folder]), flush=True)
"""


def python(*arguments: str) -> str:
    """Run a program of the learner's; returns what it prints."""
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
        "MASTER_PORT": "0",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> tuple[Path, dict[str, Any]]:
    """Four runs of two steps, the second with a planted fault; and what each came to."""
    folder = tmp_path_factory.mktemp("ran")
    python(str(Path(__file__).with_name("dump_worker.py")), str(folder), str(small_model))
    return folder, json.loads((folder / "results.json").read_text())


def dump(folder: Path, name: str) -> Path:
    return folder / name / "dumps" / "step-000002-rank-0"


@pytest.mark.engine
def test_a_bad_log_probability_is_one_groups_fault(ran: tuple[Path, dict[str, Any]]) -> None:
    """Of the second update's groups only the one at fault is named, and the parameters are those before the update."""
    folder, results = ran
    error = results["logprob"]["error"]
    assert error == f"step 2: loss nan from groups 2/0; `mmr1 replay {dump(folder, 'logprob')}` runs it again"
    found = read_dump(dump(folder, "logprob"))
    assert found.found.offending == ("2/0",) and found.update.index == 1
    assert math.isnan(found.found.losses["2/0"]) and math.isfinite(found.found.losses["1/0"])
    assert found.update.old_logprobs is not None and found.plan.step == 1
    assert not [
        path for path in found.folder.iterdir() if path.suffix in (".pt", ".pkl", ".bin") and "plan" not in path.name
    ]


@pytest.mark.engine
def test_a_poisoned_weight_is_everybodys(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, results = ran
    assert "loss nan from groups 0/0" in results["weight"]["error"] and results["weight"]["unmoved"]
    parameters = read_dump(dump(folder, "weight")).parameters()
    assert parameters is not None and sum(not torch.isfinite(t).all() for t in parameters.values()) == 1


@pytest.mark.engine
def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, results = ran
    assert results["gradient"]["error"].startswith("step 2: gradient norm inf; ") and results["gradient"]["unmoved"]
    assert math.isfinite(read_dump(dump(folder, "gradient")).found.loss)


@pytest.mark.engine
def test_replay_finds_what_the_run_found(ran: tuple[Path, dict[str, Any]]) -> None:
    """Bit for bit on one CPU process: the healthy step that `dump_steps` names, and each of the faults."""
    folder, results = ran
    assert results["healthy"]["error"] == "" and not results["healthy"]["unmoved"]
    names = ("healthy", "logprob", "weight", "gradient")
    printed = python("-c", REPLAY, *(str(dump(folder, name)) for name in names))
    parts = dict(zip(names, printed.split("exit code 0"), strict=False))
    for name in names:
        assert "the same, bit for bit" in parts[name], printed
    losses = read_dump(dump(folder, "healthy")).found.losses
    assert len(losses) == 2, "the first of two updates"
    assert all(f"{loss:.9g}" in parts["healthy"] and math.isfinite(loss) for loss in losses.values())
    assert "not reached" in parts["healthy"] and "set aside: as asked; again: finite" in parts["healthy"]
    assert "set aside: loss nan; again: loss nan from groups 2/0" in parts["logprob"]
    assert "again: gradient norm inf" in parts["gradient"] and "its gradient" in parts["gradient"]


@pytest.mark.engine
def test_other_parameters_do_not_pass(ran: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The verdict can be no: a dump whose recorded loss is another one."""
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in dump(ran[0], "healthy").iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    document = json.loads((changed / "dump.json").read_text())
    document["losses"] = {name: repr(float(value) + 1e-3) for name, value in document["losses"].items()}
    (changed / "dump.json").write_text(json.dumps(document))
    printed = python("-c", REPLAY, str(changed))
    assert "not what the run found" in printed and "exit code 1" in printed


def test_parts_of_a_loss_add_up_to_it() -> None:
    """With every term on, for groups whose completions are split over forwards in any order."""
    generator = torch.Generator().manual_seed(0)
    forward = tuple(Sample(group, index, 1.0, 0.1) for index, group in enumerate([0, 1, 0, 2, 1]))
    lengths = [3, 2, 4, 1, 5]  # by sequence, as the batcher lays them out: groups 0, 0, 1, 1, 2
    sequences = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
    count = len(sequences)

    def draw() -> torch.Tensor:
        return torch.randn(count, generator=generator)

    # Whatever the objective is told of a token, by name: near each other, as log-probabilities of one token are.
    stats = TokenStats(*(draw().abs() - 3 for _ in TokenStats._fields))
    given: dict[str, Any] = {spec.name: stats.logprobs + 0.1 * draw() for spec in fields(TokenBatch)}
    given |= {"advantages": draw(), "weights": draw().abs(), "on_policy": torch.ones(count)}
    tokens = TokenBatch(**{**given, "sequences": sequences, "num_sequences": 5})
    config = small_config(Path("m"))
    parts = group_losses(forward, stats, tokens, config)
    assert list(parts) == [0, 1, 2]
    assert float(sum(parts.values())) == pytest.approx(float(compute_loss(stats, tokens, config)[0]), rel=1e-5)
    stats.logprobs[sequences == 4] = math.nan
    parts = group_losses(forward, stats, tokens, config)
    assert [math.isfinite(float(loss)) for loss in parts.values()] == [True, True, False]


def test_what_is_no_dump(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no dump of a step; give a folder of RUN_DIR/dumps"):
        replay([str(tmp_path)])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_config(Path("m")).model_dump(mode="json")))
    with pytest.raises(ConfigurationError, match="is not a whole dump of a step"):
        replay([str(tmp_path)])
