"""On a GPU, a vision layer's attention without copies between its projection and the attention's kernel.

In transformers queries, keys and values are taken out of one projection, turned by rotary positions, put in the order
that attention wants, and their gradients are put together again: a dozen passes over them, which at 896 x 896 pixels
took a fifteenth of a whole step. Here queries and keys are turned where the projection has left them (one kernel,
`turn_kernel.py`), attention reads them there, and the gradients are written to their places in the projection's. Where
windows have several lengths, the projection is put in their order first, once for all three. A layer is replaced only
when its class computes this, which is tried and not read off its name; it stays what it is, with its parameters and
hooks, and computes as ever on a CPU. This file knows no family.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import MethodType, SimpleNamespace
from typing import Any

import structlog
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmr1_learner.vision_attention import NAME, Windows, windows_of

log = structlog.get_logger()

# What a forward raises that asks something else of itself or of its caller.
_WANTS_OTHERWISE = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError)
_PARTS = ("qkv", "proj", "num_heads", "scaling", "config")


def fuse_vision(module: nn.Module) -> bool:
    """Whether the layer attends so from here on, wherever its input is on a GPU."""
    layer: Any = module
    kind: Any = type(module)
    if not all(hasattr(layer, part) for part in _PARTS):
        return False
    if getattr(layer.config, "_attn_implementation", None) != NAME or not _is_known(kind):
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
        layer: with `qkv`, `proj`, `num_heads` and `scaling`; whatever else it has is not asked.
        angles: cosines and sines [L, D], of which each head has as many as it is wide.
    """
    projected = layer.qkv(hidden_states)
    groups, order = windows_of(boundaries, hidden_states.device)
    rows = None
    if order is not None:
        rows, angles = _in_order(boundaries, groups, angles)
    sizes = tuple((group.num, group.length) for group in groups)
    heads = _Heads.apply(projected, *angles, layer.num_heads, sizes, rows, order)  # type: ignore[no-untyped-call]
    seen = []
    for index, (num, length) in enumerate(sizes):
        q, k, v = heads[3 * index : 3 * index + 3]  # [windows, heads, length, D]
        one = F.scaled_dot_product_attention(q, k, v, scale=layer.scaling)
        seen.append(one.transpose(1, 2).reshape(num * length, -1))
    whole = seen[0] if order is None else _Permuted.apply(torch.cat(seen), order, rows)  # type: ignore[no-untyped-call]
    found: Tensor = layer.proj(whole)
    return found


def _in_order(
    boundaries: Tensor, groups: Sequence[Windows], angles: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The groups' rows in a row, and the angles of these: worked out once for all layers with the same boundaries."""
    known = boundaries.__dict__.get("_mmr1_order")
    if known is None or known[0] is not angles[0]:
        rows = torch.cat([group.rows for group in groups if group.rows is not None])
        ordered = (angles[0].index_select(0, rows), angles[1].index_select(0, rows))
        known = boundaries.__dict__["_mmr1_order"] = (angles[0], rows, ordered)
    return known[1], known[2]


class _Heads(torch.autograd.Function):
    """Of a projection [L, 3 * heads * D] queries, keys and values of each size, each [windows, heads, length, D].

    They lie in the projection's own memory, which is written over: what has made it needs its input, and not this. With
    `rows` they lie in a copy of it in that order, whose inverse is `order`; the angles are in it already.
    """

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        cos: Tensor,
        sin: Tensor,
        num_heads: int,
        sizes: Sequence[tuple[int, int]],
        rows: Tensor | None,
        order: Tensor | None,
    ) -> tuple[Tensor, ...]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin, order)
        ctx.sizes = sizes
        own = projected.detach().contiguous() if rows is None else projected.index_select(0, rows)
        parts = own.view(len(own), 3 * num_heads, -1)
        # Queries and keys follow each other, so they are turned as twice as many heads.
        both = parts[:, : 2 * num_heads]
        _turn(both[None], both, cos, sin, 1)
        found, begin = [], 0
        for num, length in sizes:
            apart = parts[begin : begin + num * length].view(num, length, 3, num_heads, parts.shape[-1])
            found += [apart[:, :, part].transpose(1, 2) for part in range(3)]
            begin += num * length
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, order = ctx.saved_tensors
        _, num_heads, _, width = grads[0].shape
        whole, begin = grads[0].new_empty(len(cos), 3, num_heads, width), 0
        for index, (num, length) in enumerate(ctx.sizes):
            own = slice(begin, begin + num * length)
            for part, grad in enumerate(grads[3 * index : 3 * index + 3]):
                grad = grad if grad.stride(-1) == 1 else grad.contiguous()
                _turn(grad.transpose(1, 2), whole[own, part], cos[own], sin[own], -1 if part < 2 else 0)
            begin += num * length
        flat = whole.view(len(cos), -1)
        return flat if order is None else flat.index_select(0, order), *[None] * 6


class _Permuted(torch.autograd.Function):
    """Rows in another order. The gradient is put back by the order's inverse, where it would be added up otherwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


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
def _is_known(layer: Any) -> bool:
    found = attends_so(layer)
    if not found:
        log.warning("vision layers attend as transformers has it, which takes longer", layer=layer.__name__)
    return found


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
