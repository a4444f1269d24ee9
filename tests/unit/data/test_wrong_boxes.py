"""Rows whose boxes no model could say: named with the others before anything starts, and by `mmr1 data validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmr1.config import RunConfig
from mmr1.config.loading import load_options
from mmr1.config.sft_options import SftConfig
from mmr1.data_cli import main
from mmr1.errors import ConfigurationError
from mmr1.preflight import check_data
from tests.models import small_config
from tests.unit.data.written_rows import written

GOOD = {"problem": "Where?", "solution": [1, 2, 3, 4], "image": "a.png", "task": "grounding"}
HUGE = f"What is in <box>[0, 0, {'9' * 400}, 4]</box>?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").write_text('{"model_type": "llava"}')
    return tmp_path


def rows(path: Path, *changes: dict[str, Any]) -> Path:
    return written(path, GOOD, *changes)


def run(folder: Path, *changes: dict[str, Any], **options: Any) -> RunConfig:
    train_file = rows(folder / "train.jsonl", *changes)
    defaults = {"train_file": str(train_file), "rewards": ["task"]}
    return small_config(options.pop("model", folder / "hub"), **{**defaults, **options})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"solution": "the cup"}, "key 'solution' (of a row of task 'grounding') is a text, but not the JSON of a box"),
        ({"solution": [1, 2, 3]}, "key 'solution' (of a row of task 'grounding') holds what is neither a box nor"),
        ({"solution": 7, "task": "detection"}, "key 'solution' (of a row of task 'detection') is neither a box"),
        ({"solution": [0, 0, 10**400, 4]}, "key 'solution' (of a row of task 'grounding') holds a box with a number"),
        ({"problem": HUGE, "solution": 3, "task": "counting"}, "key 'problem' holds a box with a number that is too"),
    ],
)
def test_a_row_with_wrong_boxes_is_named_before_anything_starts(
    folder: Path, change: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run(folder, {}, change, change)
    with pytest.raises(ConfigurationError) as caught:
        check_data(config)
    assert str(caught.value).startswith(f"{folder}/train.jsonl:2: {reason}")
    assert str(caught.value).endswith(f"(and 1 more bad rows: `mmr1 data validate {folder}/train.jsonl` lists them)")
    check_data(run(folder, {}, {}))
    held_out = rows(folder / "eval.jsonl", {}, change)
    with pytest.raises(ConfigurationError, match=r"eval\.jsonl:2: key"):
        check_data(run(folder, {}, eval_file=str(held_out), rewards=["format"]))
    assert main(["validate", str(held_out)]) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{held_out}:2: {reason}") and "1 of 2 rows are bad" in last


def test_a_solution_that_is_neither_taught_nor_compared_as_boxes_may_be_anything(folder: Path) -> None:
    for rewards in (["format"], ["task"]):
        config = run(folder, {"solution": "left of the cup", "task": "ocr"}, {}, rewards=rewards)
        assert len(check_data(config)) == 2
    assert len(check_data(run(folder, {"solution": "the cup"}, rewards=["accuracy"]))) == 1
    words = ["--model", "hub", "--train_file", str(folder / "train.jsonl"), "--num_steps", "1", "--run_dir", "runs/a"]
    with pytest.raises(ConfigurationError, match="is a text, but not the JSON of a box"):
        check_data(load_options(SftConfig, None, [*words, "--per_device_batch_size", "1"]))


def test_a_box_in_a_question_needs_to_know_how_the_model_says_it(folder: Path) -> None:
    asks = {"problem": "What is in <box>[0, 0, 4, 4]</box>?", "solution": 3, "task": "counting"}
    model = {"model": folder / "llava"}
    with pytest.raises(ConfigurationError, match="how a llava says boxes is not known here; set coordinates"):
        check_data(run(folder, asks, **model))
    check_data(run(folder, asks | {"problem": "How many?"}, **model))
    check_data(run(folder, asks, **model, coordinates="absolute"))
