"""Fine-tuning with adapters: what one process left, two ranks take up at stage 3, and both export the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from tests.conftest import free_port
from tests.unit.learner.test_supervised import sft, write_config, write_data

OPTIONS: dict[str, Any] = {
    "num_steps": 4,
    "checkpoint_every": 2,
    "keep_last": 5,
    "eval_at_start": False,
    "lora_rank": 2,
    "lora_alpha": 8,
    "lora_target_modules": ["q_proj", "down_proj"],
}

pytestmark = [pytest.mark.engine, pytest.mark.matrix]


def load(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> tuple[Path, Path]:
    """Of one process's run, and of the two ranks that went on from its second step."""
    root = tmp_path_factory.mktemp("ranks")
    data = write_data(root)
    sft(write_config(root / "one", small_model, data, per_device_batch_size=4, **OPTIONS))
    step = Path("sft") / "checkpoints" / "step-000002"
    shutil.copytree(root / "one" / step, root / "two" / step)
    # Small tensors stay whole at stage 3 unless DeepSpeed is told otherwise: here every one shall be cut.
    file = root / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    ranks = {"learner_processes": 2, "learner_master_port": free_port(), "zero_stage": 3}
    options = {**OPTIONS, **ranks, "deepspeed_config_file": str(file), "per_device_batch_size": 2}
    found = sft(write_config(root / "two", small_model, data, **options))
    assert [line["step"] for line in found] == [3, 4]
    return root / "one" / "sft", root / "two" / "sft"


def test_checkpoints_are_nothing_that_is_unpickled(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        kinds = {path.suffix for path in (folder / "checkpoints").rglob("*") if path.is_file()}
        assert kinds == {".json", ".safetensors"}


def test_two_ranks_go_on_from_one(folders: tuple[Path, Path], small_model: Path) -> None:
    one, two = (dict(load(folder / "model").named_parameters()) for folder in folders)
    base = dict(load(small_model).named_parameters())
    assert one.keys() == two.keys() == base.keys()
    moved = [name for name in base if not torch.equal(base[name], one[name])]
    assert moved and all(name.endswith(("q_proj.weight", "down_proj.weight")) for name in moved)
    for name in base:
        assert (one[name] - two[name]).abs().mean() < 2e-5, name


def test_the_adapter_beside_the_base_is_the_model(folders: tuple[Path, Path], small_model: Path) -> None:
    for folder in folders:
        merged = PeftModel.from_pretrained(load(small_model), folder / "adapter").merge_and_unload()
        expected = dict(load(folder / "model").named_parameters())
        for name, parameter in merged.named_parameters():
            assert torch.allclose(parameter, expected[name], atol=1e-6), name
