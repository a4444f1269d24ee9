"""`mmr1 report` of what `mmr1 sft` has left: its own curves and figures, and no word of rewards or ledgers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmr1.errors import ConfigurationError
from mmr1.report import main
from mmr1.report.run_files import read_run
from tests.unit.report.synthetic import write_lines
from tests.unit.report.test_report import Page


def write_fine_tuning(folder: Path, num_steps: int = 30) -> Path:
    """The files of a whole `mmr1 sft` with a held-out file."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"run": "warm", "model": "m/tiny", "task": "counting", "seed": 3})
    )
    steps = range(1, num_steps + 1)
    write_lines(folder / "metrics.jsonl", [line(step, num_steps) for step in steps])
    sides = (("before", 0, 4.0, 0.01), ("step", 15, 1.0, 0.4), ("after", num_steps, 0.5, 0.75))
    evaluations: list[dict[str, Any]] = [
        {"name": name, "step": step, "mode": "held_out", "n": 64, "loss": loss, "answer_probability": probability}
        | {"task": "counting", "seconds": 2.0}
        for name, step, loss, probability in sides
    ]
    write_lines(folder / "evaluations.jsonl", evaluations)
    return folder


def line(step: int, num_steps: int) -> dict[str, Any]:
    figures = {"loss": 4.0 / step, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens_per_second": 50.0}
    return {"step": step, "num_steps": num_steps, "time": 1.8e9 + step, "seconds": 1.0, **figures} | {
        "num_tokens": 20.0,
        "phases": {"encode": 0.1, "forward": 0.5},
    }


def test_curves_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_fine_tuning(tmp_path / "run" / "sft")
    assert main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "Fine-tuning" in printed and "75.0 %" in printed and "accuracy" not in printed
    result = json.loads((folder / "result.json").read_text())
    assert result["kind"] == "fine_tuning" and result["steps"] == 30 and result["seconds"] == 34.0
    assert result["loss"] == {"first": 4.0, "last": pytest.approx(4 / 30)}
    before, after = ({"loss": 4.0, "answer_probability": 0.01}, {"loss": 0.5, "answer_probability": 0.75})
    assert result["heldout"] == {"n": 64, "before": before, "after": after}
    page = Page(folder / "report.html")
    titles = ["Loss", "Held-out loss", "Answer probability", "Gradient norm", "Learning rate", "Tokens per second"]
    assert page.count("figure", "chart") == 7 and all(title in page.text for title in [*titles, "Seconds by phase"])
    assert "not complete" not in page.text and "Ledger" not in page.text
    assert not (folder / "reward.png").exists()


def test_one_that_was_cut_before_its_first_step(tmp_path: Path) -> None:
    """Its folder's name says what it is, and no file of a run of reinforcement is missed."""
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "config.yaml").write_text("{run: warm}")
    assert main([str(folder)]) == 0
    page = Page(folder / "report.html")
    assert "metrics.jsonl is missing" in page.text and "ledger.json" not in page.text
    assert "No optimizer step has been taken." in page.text
    assert json.loads((folder / "result.json").read_text())["loss"] == {"first": None, "last": None}


def test_a_folder_that_was_moved_is_known_by_its_lines(tmp_path: Path) -> None:
    assert read_run(write_fine_tuning(tmp_path / "warm-start")).is_fine_tuning


def test_the_folder_of_both_says_where_fine_tuning_lies(tmp_path: Path) -> None:
    folder = write_fine_tuning(tmp_path / "run" / "sft")
    with pytest.raises(ConfigurationError, match=f"give {folder}, which `mmr1 sft` has left"):
        read_run(folder.parent)
