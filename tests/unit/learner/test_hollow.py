"""A model without its weights is the loaded one in all but their memory, and rank 0's weights come to stand in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES
from mmr1_learner.hollow import _hollow, fill, hollow_model, is_hollow, outline
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


@pytest.mark.parametrize("shape", [(3, 4), (4, 1), (4, 3, 1, 1), (1, 1, 2)])
def test_filled_it_has_places_for_the_weights(shape: tuple[int, ...]) -> None:
    """Also where a dimension is 1, whose stride says nothing."""
    whole, hollow = nn.Parameter(torch.randn(shape)), _hollow(nn.Parameter(torch.randn(shape)))
    assert is_hollow(hollow) and not is_hollow(whole)
    before = whole.data.clone()
    fill([whole, hollow])
    assert hollow.is_contiguous() and hollow.untyped_storage().nbytes() == whole.untyped_storage().nbytes()
    assert not is_hollow(hollow) and torch.equal(whole, before)


def test_a_checkpoint_that_its_configuration_does_not_describe_is_seen(small_model: Path, tmp_path: Path) -> None:
    """Adapters beside the weights, a head that is not tied after all, a buffer with values of its own."""
    hollow = outline(hollow_model(str(small_model), torch.float32))
    model = AutoModelForImageTextToText.from_pretrained(small_model, dtype=torch.float32, attn_implementation="sdpa")
    assert outline(model) == hollow
    model.register_buffer("kept", torch.zeros(2))
    with_buffer = outline(model)
    model.kept += 1
    assert len({hollow, with_buffer, outline(model)}) == 3
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert outline(model) not in (hollow, with_buffer)
    assert outline(model.half()) not in (hollow, with_buffer)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"model {tmp_path}"):
        load_policy(str(tmp_path), small_config(tmp_path), hollow=True)
