"""The shape that everything was measured at, as a config.json without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmr1.config.loading import load_options
from mmr1.config.plan_options import PlanConfig

# https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/config.json, where the text's are at the top.
CONFIG_3B: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}


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
