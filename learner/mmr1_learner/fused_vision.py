"""On a GPU, a vision layer's attention without copies between its projection and the attention's kernel.

In transformers queries, keys and values are taken out of one projection, turned by rotary positions, put in the order
that attention wants, and their gradients are put together again: a dozen passes over them, which at 896 x 896 pixels
took a fifteenth of a whole step. Here queries and keys are turned where the projection has left them (one kernel,
`turn_kernel.py`), attention reads them there, and the gradients are written to their places in the projection's.
A layer is replaced only when its class computes this, which is tried and not read off its name; it stays what it is,
with its parameters and hooks, and computes as ever on a CPU. This file knows no family.
"""

from __future__ import annotations

from functools import lru_cache
from types import MethodType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmr1_learner.vision_attention import NAME, windows_of

# What a forward raises that asks something else of itself or of its caller.
_WANTS_OTHERWISE = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError)
_PARTS = ("qkv", "proj", "num_heads", "scaling", "config")


def fuse_vision(module: nn.Module) -> bool:
    """Whether the layer attends so from here on, wherever its input is on a GPU."""
    layer: Any = module
    kind: Any = type(module)
    if not all(hasattr(layer, part) for part in _PARTS):
        return False
    if getattr(layer.config, "_attn_implementation", None) != NAME or not attends_so(kind):
        return False

    def choose(
        self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **options: Any
    ) -> Tensor:
        if hidden_states.is_cuda and position_embeddings is not None:
            return attend(self, hidden_states, cu_seqlens, position_embeddings)
        found: Tensor = type(self).forward(
            self, hidden_states, cu_seqlens, position_embeddings=position_embeddings, **options
        )
        return found

    # A method of this very module, so that a copy of it computes with its own weights.
    layer.forward = MethodType(choose, layer)
    return True


def attend(layer: Any, hidden_states: Tensor, boundaries: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """[L, H] of patches to [L, H]: they see those of their own window, which `boundaries` [windows + 1] say.

    Args:
        layer: with `qkv`, `proj`, `num_heads` and `scaling`.
        angles: cosines and sines [L, D], of which each head has as many as it is wide.
    """
    projected = layer.qkv(hidden_states)
    groups, order = windows_of(boundaries, hidden_states.device)
    seen = []
    for group in groups:
        own, cos, sin = (
            tensor if group.rows is None else tensor.index_select(0, group.rows) for tensor in (projected, *angles)
        )
        q, k, v = _Heads.apply(own, cos, sin, layer.num_heads, group.num)  # type: ignore[no-untyped-call]
        one = F.scaled_dot_product_attention(q, k, v, scale=layer.scaling)  # [windows, heads, length, D]
        seen.append(one.transpose(1, 2).reshape(own.shape[0], -1))
    whole = seen[0] if order is None else torch.cat(seen).index_select(0, order)
    found: Tensor = layer.proj(whole)
    return found


class _Heads(torch.autograd.Function):
    """Of a projection [L, 3 * heads * D] its queries, keys and values, each [windows, heads, length, D].

    They lie in the projection's own memory, which is written over: what has made it needs its input, and not this.
    """

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, cos: Tensor, sin: Tensor, num_heads: int, num_windows: int
    ) -> tuple[Tensor, ...]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        # Queries and keys follow each other, so they are turned as twice as many heads.
        parts = projected.detach().contiguous().view(len(projected), 3 * num_heads, -1)
        both = parts[:, : 2 * num_heads]
        _turn(both.view(num_windows, -1, *both.shape[1:]), both, cos, sin, 1)
        apart = parts.view(num_windows, -1, 3, num_heads, parts.shape[-1])
        return tuple(apart[:, :, part].transpose(1, 2) for part in range(3))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        windows, num_heads, length, width = grads[0].shape
        whole = grads[0].new_empty(windows * length, 3, num_heads, width)
        for part, grad in enumerate(grads):
            grad = grad if grad.stride(-1) == 1 else grad.contiguous()
            _turn(grad.transpose(1, 2), whole[:, part], cos, sin, -1 if part < 2 else 0)
        return whole.view(windows * length, -1), None, None, None, None


def _turn(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, way: int) -> None:
    """Write x [windows, length, heads, D] to y [windows * length, heads, D], turned, turned back (-1), or as it is (0).

    Of the halves x1 and x2 of a head x cos + (-x2, x1) sin (Su et al. 2021, "RoFormer", equation 34, in halves as
    transformers has it), at least in float32.
    """
    if x.is_cuda:
        from mmr1_learner.turn_kernel import turn_on_gpu

        turn_on_gpu(x, y, cos, sin, way)
        return
    dtype = torch.promote_types(x.dtype, torch.float32)
    halves = x.flatten(0, 1).to(dtype).chunk(2, -1)
    if way:
        (cos_1, cos_2), (sin_1, sin_2) = (angle.to(dtype)[:, None].chunk(2, -1) for angle in (cos, sin))
        first, second = halves
        if way == 1:
            halves = first * cos_1 - second * sin_1, second * cos_2 + first * sin_2
        else:
            halves = first * cos_1 + second * sin_2, second * cos_2 - first * sin_1
    y.copy_(torch.cat(halves, -1))


@lru_cache
def attends_so(layer: Any) -> bool:
    """Whether the class's forward computes what `attend` does: for windows of one length and of several."""
    numbers = torch.arange(6 * 8.0, device="cpu").view(6, 8).sin()  # no random ones: a run's seed is its own
    weights = torch.arange(8 * 32.0, device="cpu").view(32, 8).cos()
    angle = numbers[:, :2].repeat(1, 2)
    stand_in = SimpleNamespace(
        qkv=lambda x: F.linear(x, weights[:24]),
        proj=lambda x: F.linear(x, weights[24:]),
        num_heads=2,
        head_dim=4,
        scaling=0.7,
        config=SimpleNamespace(_attn_implementation=NAME),
        attention_dropout=0.0,
        training=True,
        is_causal=False,
    )
    for boundaries in ([0, 3, 6], [0, 2, 6]):
        given = (numbers, torch.tensor(boundaries, dtype=torch.int32, device="cpu"))
        try:
            theirs = layer.forward(stand_in, *given, position_embeddings=(angle.cos(), angle.sin()))
        except _WANTS_OTHERWISE:
            return False
        if not torch.allclose(theirs, attend(stand_in, *given, (angle.cos(), angle.sin())), atol=1e-5):
            return False
    return True


__all__ = ["attend", "attends_so", "fuse_vision"]
