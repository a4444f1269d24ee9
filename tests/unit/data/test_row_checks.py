"""Rows that no answer could be scored by: named by `mmr1 data validate`, and before a run starts by its own rewards."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmr1.config import RunConfig
from mmr1.data_cli import main
from mmr1.dataset import eval_problems
from mmr1.errors import ConfigurationError
from mmr1.preflight import check_data
from mmr1.row_checks import check_own_rows, check_rows_of_server
from mmr1_reward_server.app import create_app
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings
from tests.models import small_config
from tests.unit.data.written_rows import written
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_live import live
from tests.unit.reward_server.reward_scorers import task_of

BAD = [
    ({"solution": "abc"}, "key 'solution' cannot be scored: solution for task counting: must be a count"),
    ({"solution": -3}, "key 'solution' cannot be scored: solution for task counting: must be a whole number, and not"),
    ({"solution": [1, 2]}, "key 'solution' cannot be scored: solution for task counting: must be a count or a list"),
    ({"solution": True}, "key 'solution' cannot be scored: solution for task counting: must be a count"),
    ({"solution": 3.5}, "key 'solution' cannot be scored: solution for task counting: must be a whole number"),
    ({"task": "cuonting"}, "key 'task': no task 'cuonting'; did you mean 'counting'?"),
    ({"problem": "<box>[1,2,3]</box>?"}, "key 'problem' holds <box>[1,2,3]</box>, which is no box [x1, y1, x2, y2]"),
    ({"task": "ocr", "solution": []}, "key 'solution' cannot be scored: solution for task ocr: List should have"),
    (
        {"task": "grounding", "solution": [10, 10, 5, 5]},
        "key 'solution' (of a row of task 'grounding') holds the box [10, 10, 5, 5], in which not x1 < x2 and y1 < y2",
    ),
    (
        {"task": "grounding", "solution": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        "key 'solution' cannot be scored: solution for task grounding: must be a box [x1, y1, x2, y2]",
    ),
    (
        {"task": "grounding", "solution": [10, 10, 500, 50]},
        "key 'solution' cannot be scored: the solution has a coordinate of 500, but solution_space is absolute",
    ),
    ({"task": "detection", "solution": [1, 2, 3, 4]}, "key 'solution' cannot be scored: solution for task detection:"),
    (
        {"task": "detection", "solution": [{"bbox_2d": [0, 0, 1000, 5], "label": "cup"}]},
        "key 'solution' cannot be scored: the solution has a coordinate of 1000",
    ),
]
GOOD: dict[str, Any] = {"problem": "How many?", "solution": 3, "image": "a.png", "task": "counting"}
POINTS = {"solution": [[1, 2], [3, 4]]}
INVERTED = {"task": "grounding", "solution": [10, 10, 5, 5]}
OUTSIDE = {"task": "grounding", "solution": [10, 10, 500, 50]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    return tmp_path


def rows(path: Path, *changes: dict[str, Any]) -> Path:
    return written(path, GOOD, *changes)


def run(folder: Path, *changes: dict[str, Any], **options: Any) -> RunConfig:
    train_file = rows(folder / "train.jsonl", *changes)
    return small_config(folder / "hub", **{"train_file": str(train_file), "rewards": ["task"], **options})


def check(config: RunConfig) -> None:
    """As `mmr1 up` does of data."""
    check_own_rows(config, check_data(config), eval_problems(config, check_images=False))


def test_validate_names_what_the_judge_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(folder / "rows.jsonl", *(change for change, _ in BAD), {})
    assert main(["validate", str(path)]) == 2
    *lines, last = capsys.readouterr().err.splitlines()
    assert last.endswith(f"{len(BAD)} of {len(BAD) + 1} rows are bad; repair or remove them")
    assert len(lines) == len(BAD)
    for number, (line, (_, reason)) in enumerate(zip(lines, BAD, strict=True), start=1):
        assert line.startswith(f"{path}:{number}: {reason}")


def test_validate_asks_the_rewards_that_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(rows(folder / "text.jsonl", {"task": "grounding", "solution": "left of the cup"}))
    assert main(["validate", text]) == 2
    assert main(["validate", text, "--rewards", "accuracy", "format=0.2"]) == 0
    points = str(rows(folder / "points.jsonl", POINTS))
    assert main(["validate", points]) == 2
    assert main(["validate", points, "--reward_params", '{"counting": {"score": "matching"}}']) == 0
    assert main(["validate", points, "--reward_params", "matching"]) == 2
    assert "--reward-params/--reward_params: give a JSON object" in capsys.readouterr().err


def test_validate_says_which_task_it_took(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"problem": "How many?", "solution": 3, "image": "a.png"}))
    warning = f"mmr1: warning: no row of {path} has a task: all were taken to be counting; give --task for another\n"
    assert main(["validate", str(path)]) == 0
    assert capsys.readouterr().err == warning
    assert main(["validate", str(path), "--task", "counting"]) == 0
    assert main(["validate", str(rows(path, {}))]) == 0
    assert capsys.readouterr().err == ""


def test_validate_refuses_embedded_images_where_a_run_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "PNG")
    table = {"problem": ["?"], "solution": [1], "image": [{"bytes": content.getvalue(), "path": None}]}
    pq.write_table(pa.table(table), folder / "rows.parquet")
    assert main(["validate", str(folder / "rows.parquet"), "--image_root", "memory://photos"]) == 2
    assert "embedded images are written to a folder; set image_root to one" in capsys.readouterr().err
    assert main(["validate", str(folder / "rows.parquet")]) == 0


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_run_names_what_its_rewards_refuse(folder: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(run(folder, {}, change, change))
    assert str(caught.value).startswith(f"{folder}/train.jsonl:2: {reason}")
    assert "(and 1 more bad rows: `mmr1 data validate" in str(caught.value)


def test_only_the_rewards_of_the_run_judge_its_rows(folder: Path) -> None:
    anything = [{"solution": "many"}, {"task": "grounding", "solution": "left of the cup"}, {"task": "my own"}]
    check(run(folder, *anything, rewards=["format", "accuracy"]))
    check(run(folder, {}, {"task": "ocr", "solution": []}, task_weights={"counting": 1, "ocr": 0}))
    with pytest.raises(ConfigurationError, match=r"train\.jsonl:2: .*task counting: .*--rewards counting=2 format` li"):
        many = {"solution": "many"}
        check(run(folder, {}, many, many, rewards=["counting=2", "format"]))
    with pytest.raises(ConfigurationError, match="option 'reward_params': params of task counting: "):
        check(run(folder, {}, reward_params={"counting": {"scroe": "exact"}}))


def test_a_run_holds_boxes_to_the_images_that_it_opens_anyway(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("mmr1.images.ImageStore.size", lambda _, image: opened.append(image) or (200, 100))
    check(run(folder, OUTSIDE, image_checks=0))
    with pytest.raises(ConfigurationError, match=r"train\.jsonl:1: .* a coordinate of 500"):
        check(run(folder, OUTSIDE))
    check(run(folder, *[{}, OUTSIDE] * 4, image_checks=4))  # spread over all: every other row
    assert opened == []
    with pytest.raises(ConfigurationError, match=r"train\.jsonl:2: .*task grounding: must be a box"):
        check(run(folder, {}, {"task": "grounding", "solution": [[1, 2, 3, 4]] * 2}, image_checks=0))


def test_a_reward_that_needs_the_size_is_no_reason_to_refuse_a_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    monkeypatch.setattr("mmr1.images.ImageStore.size", lambda _, image: looks.append(image) or (200, 100))
    points = {"reward_params": {"counting": {"score": "matching"}}, "image_checks": 0}
    check(run(folder, *[POINTS] * 600, **points))
    assert len(looks) == 1
    with pytest.raises(ConfigurationError, match=r"train\.jsonl:1: .*score matching compares places"):
        check(run(folder, *[{}] * 600, **points))
    assert len(looks) <= 102, "a run opens few images, however many rows are bad"


def test_held_out_rows_are_judged_by_their_own_task_and_with_their_sizes(folder: Path) -> None:
    for change, reason in ((OUTSIDE, "a coordinate of 500"), ({"solution": "many"}, "must be a count")):
        eval_file = str(rows(folder / "eval.jsonl", {}, change))
        with pytest.raises(ConfigurationError, match=rf"eval\.jsonl:2: .*{reason}"):
            check(run(folder, {}, eval_file=eval_file, rewards=["format"], image_checks=0))


def test_a_server_that_runs_judges_rows_too(folder: Path) -> None:
    def breaks(sample: Any) -> Any:
        raise RuntimeError("an empty text is not mine")

    tasks = Registry([*builtin_tasks(), task_of("my own", breaks)])
    with live(create_app(Settings(), tasks, InProcessScoring(tasks))) as url:

        def ask(config: RunConfig) -> None:
            check_rows_of_server(config, check_data(config), eval_problems(config, check_images=False))

        ask(run(folder, {}, {"task": "my own", "solution": "anything"}, reward_url=url))
        with pytest.raises(ConfigurationError, match=r"train\.jsonl:2: key 'solution' cannot be scored"):
            ask(run(folder, {}, {"solution": "many"}, reward_url=url))
        held_out = rows(folder / "eval.jsonl", {}, OUTSIDE, {"solution": "many"})
        with pytest.raises(ConfigurationError) as caught:
            ask(run(folder, {}, eval_file=str(held_out), reward_url=url))
        first, second, third = str(caught.value).splitlines()
        assert first == f"{held_out}: 2 of 3 rows cannot be scored; repair or remove them"
        assert second.startswith(f"{held_out}: row 2 cannot be scored: the solution has a coordinate of 500")
        assert third.startswith(f"{held_out}: row 3 cannot be scored: solution for task counting: must be a count")
        mine = str(rows(folder / "mine.jsonl", {"task": "my own"}))
        assert main(["validate", mine]) == 2
        assert main(["validate", mine, "--url", url]) == 0
        assert main(["validate", str(rows(folder / "mine.jsonl", {"task": "my won"})), "--url", url]) == 2
    assert main(["validate", mine, "--url", "reward"]) == 2
