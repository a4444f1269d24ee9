"""An exported folder has the names that both libraries load, whatever names the base folder has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmr1_learner.export import export
from mmr1_learner.model import load_policy
from mmr1_learner.published import Published
from mmr1_learner.ranks import Ranks
from tests.family_models import build
from tests.models import small_config


@pytest.mark.parametrize("flat", [False, True])
def test_a_llava_keeps_the_published_names_of_its_tower(flat: bool, tmp_path: Path) -> None:
    """vLLM knows these alone; a folder that transformers itself has written (`flat`) has others."""
    base = tmp_path / "base"
    build("llava", base)
    if flat:
        weights = load_file(base / "model.safetensors")
        renamed = {name.replace(".vision_model.", "."): tensor for name, tensor in weights.items()}
        save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    config = small_config(base)
    policy = load_policy(str(base), config)
    published = Published(policy, Ranks(0, 1, torch.device("cpu")), config.weight_bucket_bytes)
    for _ in range(2):  # a second export takes the first one's place
        export(config, published, AutoProcessor.from_pretrained(base), tmp_path)
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert set(written) == {spec.name for spec in published.manifest()}, "what weight updates send to vLLM"
    tower = [name for name in written if ".vision_tower." in name]
    assert tower and all(name.startswith("model.vision_tower.vision_model.") for name in tower)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = dict(policy.hf.named_parameters())
    found = dict(again.named_parameters())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o644
