"""A vision layer that turns heads in its projection's memory computes what transformers' own does, gradients too.

What is tried here on a CPU is all but the kernel's launch; the kernel itself is run by Triton's interpreter, and
compiled for a GPU. Its values there: tests/gpu.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from mmr1_learner import fused_kernels, fused_vision
from mmr1_learner.fused_kernels import fuse_kernels
from mmr1_learner.fused_vision import _Heads, attend, attends_so, fuse_vision
from mmr1_learner.vision_attention import batch_vision_attention
from tests.conftest import REPOSITORY
from tests.models import small_config
from tests.unit.learner.test_vision_attention import GRIDS, qwen2, qwen2_5, qwen3, see

MAKERS = {"qwen2_5": qwen2_5, "qwen2": qwen2, "qwen3": qwen3}


def vision_layers(model: Any) -> list[Any]:
    return [block.attn for block in model.model.visual.blocks]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A fused layer goes its new way here too; the number of patches of each call."""
    calls: list[int] = []
    before = fused_vision.MethodType

    def method(function: Callable[..., Tensor], module: Any) -> Any:
        def always(self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any, **_: Any) -> Tensor:
            calls.append(len(hidden_states))
            return attend(self, hidden_states, cu_seqlens, position_embeddings)

        return before(always, module)

    monkeypatch.setattr(fused_vision, "MethodType", method)
    return calls


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_values_and_gradients_are_transformers_own(make: Callable[[], Any], grid: str, on_cpu: list[int]) -> None:
    torch.manual_seed(0)
    model = make()
    before, gradients = see(model, GRIDS[grid])
    batch_vision_attention(model)
    assert all(fuse_vision(layer) for layer in vision_layers(model))
    after, now = see(model, GRIDS[grid])
    assert len(on_cpu) == len(vision_layers(model))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert len(now) == len(gradients) > 0
    for ours, theirs in zip(now, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_that_are_computed_again_are_the_same(recompute: bool, on_cpu: list[int]) -> None:
    torch.manual_seed(0)
    model = qwen2_5()
    batch_vision_attention(model)
    _, expected = see(model, GRIDS["equal"])
    for layer in vision_layers(model):
        fuse_vision(layer)
    if recompute:
        model.model.visual.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    _, found = see(model, GRIDS["equal"])
    assert len(on_cpu) == (2 if recompute else 1) * len(vision_layers(model))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_gradient_is_that_of_what_is_computed() -> None:
    drawn = torch.Generator().manual_seed(0)
    projected = torch.randn(6, 3 * 2 * 4, generator=drawn, dtype=torch.float64, requires_grad=True)
    cos, sin = torch.randn(2, 6, 4, generator=drawn, dtype=torch.float64)
    rows = torch.tensor([2, 3, 0, 1, 4, 5])

    for where in (((3, 2),), None, None), (((2, 1), (1, 4)), rows, rows.argsort()):

        def heads(given: Tensor, where: Any = where) -> tuple[Tensor, ...]:
            return _Heads.apply(given * 1.0, cos, sin, 2, *where)  # type: ignore[no-any-return, no-untyped-call]

        assert torch.autograd.gradcheck(heads, (projected,))


def test_nothing_is_copied_in_the_forward() -> None:
    projected = torch.randn(6, 24)
    place = projected.data_ptr()
    angles = (torch.ones(6, 4), torch.zeros(6, 4))
    for part in _Heads.apply(projected, *angles, 2, ((3, 2),), None, None):  # type: ignore[no-untyped-call]
        assert part.shape == (3, 2, 2, 4)
        assert part.untyped_storage().data_ptr() == place


def test_layers_that_compute_this_are_taken_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused_kernels, "find_spec", lambda _: True)
    for make in MAKERS.values():
        model = make()
        batch_vision_attention(model)
        fuse_kernels(model, small_config(tmp_path, fused_kernels="liger"))
        taken = [module for module in model.modules() if getattr(module, "forward", None).__name__ == "choose"]
        layers = vision_layers(model)
        assert [module for module in taken if module in layers] == layers
        assert not [module for module in taken if module not in layers and hasattr(module, "qkv")]


def test_on_a_cpu_a_layer_computes_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    model = qwen2_5()
    before, _ = see(model, GRIDS["one"])
    batch_vision_attention(model)
    assert all(fuse_vision(layer) for layer in vision_layers(model))
    monkeypatch.setattr(fused_vision, "attend", None)
    after, _ = see(model, GRIDS["one"])
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_a_copy_computes_with_its_own_weights() -> None:
    model = qwen2_5()
    batch_vision_attention(model)
    layer = vision_layers(model)[0]
    fuse_vision(layer)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        layer.qkv.weight.zero_()
    given: tuple[Any, ...] = (torch.randn(4, 32), torch.tensor([0, 4], dtype=torch.int32))
    angles = (torch.ones(4, 16), torch.zeros(4, 16))
    assert not torch.equal(other(*given, position_embeddings=angles), layer(*given, position_embeddings=angles))


def test_a_tower_that_attends_by_another_implementation_is_left_alone() -> None:
    assert not any(fuse_vision(layer) for layer in vision_layers(qwen2_5()))


class Scaled(Qwen2_5_VLVisionAttention):  # type: ignore[misc, unused-ignore]
    def forward(self, hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
        found: Tensor = super().forward(hidden_states, *rest, **named)
        return found * 1.001


class Normed(Qwen2_5_VLVisionAttention):  # type: ignore[misc, unused-ignore]
    def forward(self, hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
        found: Tensor = super().forward(self.norm(hidden_states), *rest, **named)
        return found


class Across(Qwen2_5_VLVisionAttention):  # type: ignore[misc, unused-ignore]
    """Windows of unlike lengths see each other."""

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, *rest: Any, **named: Any) -> Tensor:
        if len(set(cu_seqlens.diff().tolist())) > 1:
            cu_seqlens = cu_seqlens[[0, -1]]
        found: Tensor = super().forward(hidden_states, cu_seqlens, *rest, **named)
        return found


@pytest.mark.parametrize("other", [Scaled, Normed, Across, nn.Linear])
def test_a_layer_that_computes_something_else_is_seen(other: Any) -> None:
    batch_vision_attention(qwen2_5())  # its function is known to transformers from here on
    assert attends_so(Qwen2_5_VLVisionAttention) and not attends_so(other)


def test_a_release_that_turns_heads_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    batch_vision_attention(qwen2_5())
    turn = modeling_qwen2_5_vl.apply_rotary_pos_emb_vision
    monkeypatch.setattr(
        modeling_qwen2_5_vl, "apply_rotary_pos_emb_vision", lambda q, k, cos, sin: turn(q, k, cos, -sin)
    )
    assert not attends_so.__wrapped__(Qwen2_5_VLVisionAttention)


def test_the_kernel_turns_as_the_definition_does() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.unit.learner.turn_worker"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 4 * 3 * 3 * 3
    for dtype, way, apart in found:
        # The interpreter cuts bfloat16 off where a GPU rounds: one last place.
        assert apart <= (1.0 if dtype == "torch.bfloat16" else 2.0) and (way or not apart), (dtype, way, apart)


def test_the_kernel_is_compiled_for_a_gpu_with_wide_loads() -> None:
    """At Qwen2.5-VL's shape, with what a launch knows of its numbers: which of them 16 divides."""
    pytest.importorskip("triton")
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmr1_learner.turn_kernel import _turn

    kinds = dict.fromkeys(_turn.arg_names, "i32") | dict.fromkeys(("cos", "sin"), "*fp32")
    kinds |= dict.fromkeys(("x", "y"), "*bf16") | dict.fromkeys(("half", "WAY", "HEADS", "HALF"), "constexpr")
    known = [place for place, kind in enumerate(kinds.values()) if kind != "constexpr"]
    divided = {(place,): [["tt.divisibility", 16]] for place in known}
    for way in (1, -1, 0):
        given = {"half": 40, "WAY": way, "HEADS": 32, "HALF": 64}
        made = compiled(ASTSource(_turn, kinds, given, divided), target=GPUTarget("cuda", 90, 32)).asm
        assert made["cubin"] and ".v4." in made["ptx"] and "ld.global.b16" not in made["ptx"], way
