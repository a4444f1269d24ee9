"""A model without its weights is the loaded one in all but their memory, and rank 0's weights come to stand in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES
from mmr1_learner.hollow import fill, hollow_model, is_hollow
from mmr1_learner.model import load_policy
from tests.family_models import build
from tests.models import small_config


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, folder)
    return folder


def memory(module: nn.Module) -> int:
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}.values())


def test_it_has_the_shapes_and_no_weights(folder: Path) -> None:
    """In this order: ranks cut one parameter after another together."""
    loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    hollow = hollow_model(str(folder), torch.bfloat16)
    described = [
        [(name, p.shape, p.dtype, p.requires_grad) for name, p in m.named_parameters()] for m in (loaded, hollow)
    ]
    assert type(hollow) is type(loaded) and described[0] == described[1]
    assert memory(hollow) <= 8 * len(described[1]) and all(map(is_hollow, filter(_several, hollow.parameters())))
    theirs, ours = dict(loaded.named_buffers()), dict(hollow.named_buffers())
    assert theirs.keys() == ours.keys() and all(torch.equal(ours[name], buffer) for name, buffer in theirs.items())


def _several(parameter: nn.Parameter) -> bool:
    return parameter.numel() > 1


def test_nothing_stays_changed_in_torch(folder: Path) -> None:
    register = nn.Module.register_parameter
    hollow_model(str(folder), torch.float32)
    assert nn.Module.register_parameter is register
    assert not is_hollow(nn.Linear(3, 4).weight)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2, "lora_alpha": 4, "lora_target_modules": ["q_proj"]}])
def test_a_policy_and_its_reference_stay_hollow(small_model: Path, options: dict[str, object]) -> None:
    config = small_config(small_model, zero_stage=3, **options)
    whole, hollow = load_policy(str(small_model), config), load_policy(str(small_model), config, hollow=True)
    assert [name for name, _ in hollow.named_parameters()] == [name for name, _ in whole.named_parameters()]
    reference = hollow.frozen_copy()
    small = memory(whole) // 10  # adapters are real
    assert memory(hollow) < small and memory(reference) < small
    mine = {id(p) for p in hollow.parameters()}
    assert not [p for p in reference.parameters() if id(p) in mine or p.requires_grad]


def test_filled_it_has_places_for_the_weights() -> None:
    layer = nn.Linear(4, 3)
    layer.weight.data, bias = torch.zeros(1).expand(3, 4), layer.bias.data.clone()
    fill(layer.parameters())
    assert layer.weight.is_contiguous() and not is_hollow(layer.weight) and torch.equal(layer.bias, bias)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"model {tmp_path}"):
        load_policy(str(tmp_path), small_config(tmp_path), hollow=True)
