"""A model folder of the shape that everything was measured at, without weights, and plans for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmr1.config.loading import load_options
from mmr1.config.plan_options import PlanConfig
from tests.unit.capacity.shape_3b import CONFIG_3B


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG_3B))
    return folder


@pytest.fixture
def planned(model: Path) -> Callable[..., PlanConfig]:
    """The options of a plan for it, as a command line gives them: at the measured group unless it says otherwise."""

    def options(*arguments: str) -> PlanConfig:
        group = ["--image_size=896", "--max_prompt_length=1039", "--max_completion_length=64", "--kl="]
        return load_options(PlanConfig, None, [f"--model={model}", "--gpus=4", "--gpu=h200", *group, *arguments])

    return options
