"""docs/data.md can be followed: its script, its commands and its configuration work, and print what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mmr1.config import load_config
from mmr1.data_cli import main
from mmr1.dataset import order_of, train_problems
from mmr1.preflight import check_data, check_kimikl_task
from mmr1.reward_names import check_names_of_own_server

PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"
TEXT = PAGE.read_text()
COMMANDS = re.findall(r"^    \.venv/bin/mmr1 data (.+)$", TEXT, re.MULTILINE)


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "data.md", "exec"), {})
    return tmp_path


def test_every_command_prints_what_the_page_shows(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) == 4
    shown = {line.strip() for line in TEXT.splitlines()}
    for command in COMMANDS:
        code = main(command.split())
        printed = capsys.readouterr()
        assert code == (2 if "broken" in command else 0), printed
        lines = (printed.out + printed.err).replace(str(shapes.resolve()), "/srv").splitlines()
        assert lines
        if "--image_dir" not in command and "embedded" not in command:
            assert [line for line in lines if line.strip() not in shown] == []


def test_the_configuration_is_a_mixed_run(shapes: Path) -> None:
    (shapes / "run.yaml").write_text(block("yaml"))
    config = load_config(shapes / "run.yaml")
    problems = check_data(config)
    check_kimikl_task(config, problems)
    check_names_of_own_server(config, problems.tasks)
    order = order_of(problems, config)
    assert [problems[order.index(position)].task for position in range(12)].count("counting") == 8
    assert config.reward_specs_for("grounding")[0].params == {"score": "iou"}


def test_embedded_images_and_the_row_of_the_page(shapes: Path) -> None:
    document = yaml.safe_load(block("yaml")) | {"train_file": "data/shapes/embedded.parquet"}
    (shapes / "run.yaml").write_text(yaml.safe_dump(document))
    problems = train_problems(load_config(shapes / "run.yaml"))
    assert {problem.images[0].split("/")[0] for problem in problems} == {"embedded_images"}
    assert set(yaml.safe_load(block("json"))) == {"problem", "solution", "image", "task"}
