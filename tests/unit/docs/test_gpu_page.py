"""docs/gpu.md shows what `mmr1 plan` prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmr1.capacity.command import main
from tests.unit.capacity.shape_3b import CONFIG_3B

DOCS = Path(__file__).resolve().parents[3] / "docs"
MODEL = "models/Qwen2.5-VL-3B-Instruct"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commands are called: a model without weights beside nothing else."""
    (tmp_path / MODEL).mkdir(parents=True)
    (tmp_path / MODEL / "config.json").write_text(json.dumps(CONFIG_3B))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def test_the_example_is_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "gpu.md").read_text()
    (command,) = re.findall(r"^    mmr1 plan (--model .*)$", page, re.MULTILINE)
    assert main(command.split()) == 0
    printed = "\n".join(f"    {line}".rstrip() for line in capsys.readouterr().out.rstrip().splitlines())
    assert printed in page
