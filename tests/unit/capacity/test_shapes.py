"""Shapes of every family against transformers' own models, which are built without memory; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmr1.capacity.shapes import read_shape
from mmr1.capacity.work import work_of
from mmr1.config.plan_options import PlanConfig
from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES

EXAMPLE = Path("examples/tiny_vlm")


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_every_family(family: str, tmp_path: Path) -> None:
    """At the size that transformers has for its default."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(family)
    config.text_config.pad_token_id = None  # two families' default is outside of their default vocabulary
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    shape = read_shape(family, tmp_path)
    assert shape.counted
    assert shape.num_parameters == pytest.approx(sum(one.numel() for one in model.parameters()), rel=0.01)


def test_of_weights_their_own_number_is_taken() -> None:
    shape = read_shape("tiny", EXAMPLE)
    assert not shape.counted
    assert 1_200_000 < shape.num_parameters < 2_500_000


def test_an_index_says_the_number_where_the_weights_are_not(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_parameters": 5}, "weight_map": {"a": "model-1.safetensors"}}))
    assert read_shape("3b", model).num_parameters == 5
    index.write_text(json.dumps({"metadata": {"total_size": 10}, "weight_map": {"a": "model-1.safetensors"}}))
    assert read_shape("3b", model).counted
    index.write_text("{")
    with pytest.raises(ConfigurationError, match=r"index\.json cannot be read; download it again"):
        read_shape("3b", model)


def test_published_folders_leave_out_defaults(tmp_path: Path) -> None:
    """As llava-hf/llava-1.5-7b-hf's config.json does."""
    vision = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16}
    vision |= {"num_hidden_layers": 24, "patch_size": 14, "model_type": "clip_vision_model"}
    text = {"model_type": "llama", "vocab_size": 32064}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llava", "text_config": text, "vision_config": vision})
    )
    assert read_shape("llava", tmp_path).num_parameters == pytest.approx(7.06e9, rel=0.01)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    described = json.loads(path.read_text())
    edit(described)
    path.write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda config: config.update(model_type="pixtral"), "is a pixtral, whose shape is not known here; known are"),
        (lambda config: config.pop("model_type"), "no readable config.json with a model_type"),
        (lambda config: config.pop("vocab_size"), "lacks vocab_size, a positive number; give the config.json of"),
        (lambda config: config.update(hidden_size="2048"), "has '2048' for hidden_size"),
        (lambda config: config["vision_config"].pop("depth"), r"lacks vision_config\.depth"),
        (lambda config: config["vision_config"].update(patch_size=0), r"has 0 for vision_config\.patch_size"),
        (lambda config: config.update(vision_config=[]), "vision_config is no mapping"),
    ],
)
def test_a_config_that_lacks_what_is_needed(edit: Callable[[dict[str, Any]], object], why: str, model: Path) -> None:
    change(model, edit)
    with pytest.raises(ConfigurationError, match=why):
        read_shape("some", model)


def test_images_that_do_not_fit_the_prompt(planned: Callable[..., PlanConfig], model: Path) -> None:
    with pytest.raises(ConfigurationError, match="images of a prompt are 2048 tokens and max_prompt_length is 1039"):
        work_of(planned("--images=2"), read_shape("3b", model), model)
    bounded = work_of(planned("--max_pixels=200704"), read_shape("3b", model), model)
    assert bounded.image_tokens == 256
    with pytest.raises(ConfigurationError, match="image_size: an image has 1 x 400 pixels"):
        work_of(planned("--image_size=1x400"), read_shape("3b", model), model)


def test_tiles_are_asked_for(planned: Callable[..., PlanConfig], tmp_path: Path) -> None:
    from transformers import SmolVLMConfig

    folder = tmp_path / "smolvlm"
    SmolVLMConfig(
        vision_config={"hidden_size": 768, "image_size": 512, "patch_size": 16}, scale_factor=4
    ).save_pretrained(folder)
    shape = read_shape("smolvlm", folder)
    with pytest.raises(ConfigurationError, match="cuts images into tiles; say into how many"):
        work_of(planned(), shape, folder)
    assert work_of(planned("--image_tiles=5"), shape, folder).image_tokens == 5 * 64
