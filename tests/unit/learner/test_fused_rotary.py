"""Which layers' rotary positions take a kernel: by what they compute. Its own values on a GPU: tests/gpu."""

from __future__ import annotations

import copy
import sys
from functools import wraps
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere import modeling_cohere
from transformers.models.ernie4_5_vl_moe import modeling_ernie4_5_vl_moe
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb, apply_rotary_pos_emb_vision

from mmr1_learner.fused_rotary import fuse_rotary, turns_halves


class Text(nn.Module):
    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return apply_rotary_pos_emb(q, k, cos, sin)


class Images(nn.Module):
    def forward(self, q: Tensor, k: Tensor, *, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return apply_rotary_pos_emb_vision(q, k, *angles)


class OnGpu(torch.Tensor):
    is_cuda = True  # type: ignore[assignment]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, torch.dtype]]:
    """In the place of Liger's: the same arithmetic, and what it was called with, the shape and the angles' type."""
    calls: list[tuple[torch.Size, torch.dtype]] = []

    class LigerRopeFunction:
        @staticmethod
        def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
            calls.append((q.shape, cos.dtype))
            wide = cos.view(-1, *cos.shape[-2:])
            return apply_rotary_pos_emb(q, k, wide, sin.view_as(wide))

    module: Any = ModuleType("liger_kernel.ops.rope")
    module.LigerRopeFunction = LigerRopeFunction
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.rope", module)
    return calls


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def angles(*shape: int) -> tuple[Tensor, Tensor]:
    half = drawn(*shape)
    return torch.cat((half, half), -1).cos(), torch.cat((half, half), -1).sin()


def as_gpu(*tensors: Tensor) -> list[Tensor]:
    return [tensor.as_subclass(OnGpu) for tensor in tensors]


def test_text_goes_to_the_kernel_as_it_is(kernel: list[tuple[torch.Size, torch.dtype]]) -> None:
    layer = Text()
    fuse_rotary(layer)
    q, k, (cos, sin) = drawn(2, 4, 5, 8), drawn(2, 2, 5, 8), angles(2, 5, 4)
    for one, other in zip(layer(*as_gpu(q, k), cos, sin), Text()(q, k, cos, sin), strict=True):
        torch.testing.assert_close(one.as_subclass(Tensor), other)
    assert kernel == [(q.shape, torch.float32)]


def test_images_are_turned_in_float32_heads_first(kernel: list[tuple[torch.Size, torch.dtype]]) -> None:
    layer = Images()
    fuse_rotary(layer)
    q, k, (cos, sin) = drawn(5, 4, 8), drawn(5, 4, 8) + 1, angles(5, 4)
    given = (cos.bfloat16(), sin.bfloat16())
    found, expected = layer(*as_gpu(q, k), angles=given), Images()(q, k, angles=given)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one.as_subclass(Tensor), other)
    assert kernel == [((1, 4, 5, 8), torch.float32)]


def test_on_a_cpu_and_with_other_arguments_it_is_the_layers_own(kernel: list[tuple[torch.Size, torch.dtype]]) -> None:
    layer = Text()
    fuse_rotary(layer)
    again = copy.deepcopy(layer)
    assert "forward" in vars(layer) and again.forward.__self__ is again
    q, k, (cos, sin) = drawn(2, 4, 5, 8), drawn(2, 2, 5, 8), angles(2, 5, 4)
    for one in (layer, again):
        assert all(map(torch.equal, one(q, k, cos, sin), Text()(q, k, cos, sin)))
    assert not kernel


def test_other_layouts_than_were_tried_are_the_layers_own(kernel: list[tuple[torch.Size, torch.dtype]]) -> None:
    """MLCD's towers have images' function with a batch before the tokens; others give fewer angles than tokens."""
    images, text = Images(), Text()
    fuse_rotary(images)
    fuse_rotary(text)
    q, k, (cos, sin) = drawn(1, 5, 4, 8), drawn(1, 5, 4, 8) + 1, angles(5, 4)
    found, expected = images(*as_gpu(q, k), angles=(cos, sin)), Images()(q, k, angles=(cos, sin))
    assert all(torch.equal(one.as_subclass(Tensor), other) for one, other in zip(found, expected, strict=True))
    one_angle = [part[None, :1] for part in (cos, sin)]
    found, expected = text(*as_gpu(q, k), *one_angle), Text()(q, k, *one_angle)
    assert all(torch.equal(one.as_subclass(Tensor), other) for one, other in zip(found, expected, strict=True))
    wide = [part.double()[None] for part in (cos, sin)]  # angles of another type: the function's own result is wider
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    assert text(*as_gpu(q, k), *wide)[0].dtype == Text()(q, k, *wide)[0].dtype == torch.float64
    assert not kernel


def test_a_function_is_known_by_what_it_computes() -> None:
    """Cohere's has the same name, and turns neighbours instead of halves; Ernie's computes in float32."""
    assert turns_halves(apply_rotary_pos_emb) and turns_halves(apply_rotary_pos_emb_vision)
    assert turns_halves(modeling_llama.apply_rotary_pos_emb)
    assert not turns_halves(modeling_cohere.apply_rotary_pos_emb)
    assert not turns_halves(modeling_ernie4_5_vl_moe.apply_rotary_pos_emb)

    def apply_rotary_pos_emb_with_more(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, more: Tensor) -> Any:
        raise AssertionError("never called")

    assert not turns_halves(apply_rotary_pos_emb_with_more)
    attention = modeling_cohere.CohereAttention(modeling_cohere.CohereConfig(num_hidden_layers=1), 0)
    fuse_rotary(attention)
    assert "forward" not in vars(attention)


def test_a_layer_whose_forward_is_wrapped_is_left_alone() -> None:
    class Wrapped(Text):
        @wraps(Text.forward)
        def forward(self, *given: Any) -> Any:
            return Text.forward(self, *given)

    layer = Wrapped()
    fuse_rotary(layer)
    assert "forward" not in vars(layer)


def test_nothing_is_put_into_transformers_own_modules() -> None:
    before = modeling_qwen2_5_vl.apply_rotary_pos_emb, modeling_qwen2_5_vl.Qwen2_5_VLAttention.forward
    fuse_rotary(Text())
    assert (modeling_qwen2_5_vl.apply_rotary_pos_emb, modeling_qwen2_5_vl.Qwen2_5_VLAttention.forward) == before
