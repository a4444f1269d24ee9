"""docs/evaluation.md names the metrics that there are, and its commands are ones that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmr1.config.eval_options import EvalConfig
from mmr1.config.loading import load_options
from mmr1.config.options import RunConfig
from mmr1.evaluation import HEADLINES, Answer, measure
from mmr1.evaluation.resampling import RESAMPLES
from mmr1.metric_names import METRIC_NAMES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "evaluation.md").read_text()
BOX = {"bbox_2d": [0, 0, 1, 1], "label": "a"}
COUNTS = {"num_matched": 1.0, "num_predicted": 1.0, "num_true": 1.0}
RIGHT: dict[str, dict[str, Any]] = {
    "counting": {"solution": 1, "parsed": {"count": 1}},
    "grounding": {"solution": [0, 0, 1, 1], "components": {"iou": 1.0}},
    "ocr": {"solution": "a", "parsed": {"text": "a"}, "components": {"edit": 1.0}},
    "detection": {"solution": [BOX], "parsed": [BOX], "components": COUNTS},
    "Other tasks": {"solution": "1"},
}


@pytest.mark.parametrize("task", RIGHT)
def test_each_task_has_its_metrics_and_its_headline(task: str) -> None:
    section = PAGE.partition(f"### {task}\n")[2].partition("\n#")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    (result,) = measure([Answer(0, 0, task, "", is_valid=True, is_truncated=False, reward=1.0, **RIGHT[task])], seed=0)
    assert set(named) == result.metrics.keys() - {"invalid", "truncated"}
    assert re.findall(r"\*\*`(\w+)`\*\*", section) == [result.headline]
    assert HEADLINES.get(task, "mean_reward") == result.headline
    assert f"{RESAMPLES} times" in PAGE
    assert result.metrics.keys() <= METRIC_NAMES.keys(), "each has words, and is known to be a share or not"


def test_every_name_for_people_is_a_metrics_and_its_own() -> None:
    assert [name for name in METRIC_NAMES if f"`{name}`" not in PAGE] == []
    assert len({known.words for known in METRIC_NAMES.values()}) == len(METRIC_NAMES)


def test_its_commands_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": "m", "train_file": "t.json", "eval_file": "e.json"}))
    commands = re.findall(r"^    \.venv/bin/mmr1 eval run\.yaml(.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 4
    read = [load_options(EvalConfig, path, shlex.split(command, comments=True)) for command in commands]
    assert len({config.folder for config in read}) == 4, "each refuses the answers of another"


def test_the_options_it_names_exist() -> None:
    table = PAGE.partition("| option | |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert len(named) >= 5 and set(named) <= EvalConfig.model_fields.keys()
    for name in EvalConfig.model_fields.keys() - RunConfig.model_fields.keys():
        assert f"`{name}`" in PAGE
