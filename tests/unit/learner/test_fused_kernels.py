"""Which layers take a GPU's kernels, who refuses, and that nothing changes on a CPU. Their values: tests/gpu."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmr1.errors import ConfigurationError
from mmr1_learner import fused_kernels
from mmr1_learner.fused_kernels import fuse_kernels
from tests.models import small_config, small_policy


@pytest.fixture
def as_if_there(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool, bool], None]:
    """(a GPU, Liger): what the machine is said to have."""

    def say(gpu: bool, liger: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(fused_kernels, "find_spec", lambda _: object() if liger else None)

    return say


class Gated(nn.Module):
    """A gated layer of a width that matrix units do not take, with biases, as Qwen2.5-VL's vision layers have."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down_proj, self.act_fn = nn.Linear(inner, width), nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return found


def changed(hf: nn.Module) -> set[str]:
    return {name for name, module in hf.named_modules() if "forward" in vars(module)}


def test_the_option_is_what_decides(small_model: Path, as_if_there: Callable[[bool, bool], None]) -> None:
    for option, fused in (("auto", True), ("liger", True), ("none", False)):
        as_if_there(False, False)
        policy = small_policy(small_model)
        as_if_there(True, True)
        fuse_kernels(policy.hf, small_config(small_model, fused_kernels=option))
        names = changed(policy.hf)
        assert bool(names) is fused, option
        if fused:
            kinds = {name.rpartition(".")[2] for name in names}
            assert {"input_layernorm", "post_attention_layernorm", "norm", "norm1", "norm2", "mlp"} <= kinds
            assert {"self_attn", "attn"} <= kinds, "rotary positions, of text and of images"
            assert any(".visual." in name for name in names) and any("language_model" in name for name in names)


@pytest.mark.parametrize(("gpu", "liger", "what"), [(False, True, "a GPU"), (True, False, "liger-kernel")])
def test_auto_goes_without_what_is_missing_and_liger_refuses(
    small_model: Path, as_if_there: Callable[[bool, bool], None], gpu: bool, liger: bool, what: str
) -> None:
    as_if_there(gpu, liger)
    policy = small_policy(small_model)
    fuse_kernels(policy.hf, small_config(small_model))
    assert not changed(policy.hf)
    with pytest.raises(ConfigurationError, match=rf"fused_kernels is liger, and here is no {what}; pip install"):
        fuse_kernels(policy.hf, small_config(small_model, fused_kernels="liger"))


def test_a_copy_computes_with_its_own_weights(
    small_model: Path, as_if_there: Callable[[bool, bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference model is one; it must not follow the policy through what was put in its modules' place."""
    as_if_there(True, True)
    policy = small_policy(small_model)
    fuse_kernels(policy.hf, small_config(small_model))
    reference = copy.deepcopy(policy)
    for name in changed(policy.hf):
        ours, theirs = policy.hf.get_submodule(name), reference.hf.get_submodule(name)
        assert ours.forward.__self__ is ours and theirs.forward.__self__ is theirs, name


@pytest.mark.parametrize(("inner", "filled"), [(3420, True), (64, False)])
def test_a_layer_is_filled_up_to_what_matrix_units_take(
    small_model: Path, as_if_there: Callable[[bool, bool], None], inner: int, filled: bool
) -> None:
    as_if_there(True, True)
    layer = Gated(16, inner)
    x, before = torch.randn(3, 16), Gated.forward
    expected = before(layer, x)
    fuse_kernels(layer, small_config(small_model))
    assert ("forward" in vars(layer.gate_proj)) is filled
    torch.testing.assert_close(layer(x), expected)  # on a CPU: as ever
    if filled:
        gate, up = (fused_kernels._wider(part, x) for part in (layer.gate_proj, layer.up_proj))
        assert gate.shape[-1] % 64 == 0
        torch.testing.assert_close(fused_kernels._deeper(layer.down_proj, nn.functional.silu(gate) * up), expected)


def test_no_layer_is_filled_up_beside_adapters(small_model: Path, as_if_there: Callable[[bool, bool], None]) -> None:
    """What they add to such a layer takes its input as it is."""
    as_if_there(True, True)
    layer: Any = Gated(16, 3420)
    fuse_kernels(layer, small_config(small_model, lora_rank=2))
    assert changed(layer) == {""}
