"""On a GPU, rotary positions as one kernel; transformers' functions are a dozen small ones, for images in float32.

Liger's kernel turns queries and keys at once, computes in the type of the angles and keeps that of what it turns
(https://github.com/linkedin/Liger-Kernel; Su et al. 2021, "RoFormer", equation 34, in halves as transformers has it).
A layer keeps its own forward, in which one function is another, in that layer alone; and only a function that computes
what the kernel does, which is tried and not read off its name. This file knows no family.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

# What transformers' modules call them. The second is of images: [L, heads, D], where the first is [B, heads, L, D].
_NAMES = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision")

Rotation = Callable[..., tuple[Tensor, Tensor]]


def fuse_rotary(module: nn.Module) -> None:
    """Have a layer whose forward turns queries and keys do so by the kernel wherever they are on a GPU."""
    layer: Any = type(module)
    forward = _fused(layer)
    if forward is not None:
        # A method of this very module, so that a copy of it computes with its own weights.
        module.forward = MethodType(forward, module)


@lru_cache
def _fused(layer: Any) -> Callable[..., Any] | None:
    """The class's forward, reading other functions of these names. None: it reads none that the kernel can replace."""
    forward: Any = layer.forward
    if not isinstance(forward, FunctionType):
        return None
    named = {name: forward.__globals__.get(name) for name in _NAMES if name in forward.__code__.co_names}
    found = {name: _by_kernel(rotation) for name, rotation in named.items() if rotation and turns_halves(rotation)}
    if not found:
        return None
    known = {**forward.__globals__, **found}
    twin = FunctionType(forward.__code__, known, forward.__name__, forward.__defaults__, forward.__closure__)
    twin.__kwdefaults__ = forward.__kwdefaults__
    return twin


def _by_kernel(rotation: Rotation) -> Rotation:
    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if not q.is_cuda or rest or named:
            return rotation(q, k, cos, sin, *rest, **named)
        from liger_kernel.ops.rope import LigerRopeFunction

        # Written over what it is given, where that is contiguous: a projection's output, which no backward pass reads.
        if q.dim() == 4:
            text: tuple[Tensor, Tensor] = LigerRopeFunction.apply(q, k, cos, sin)
            return text
        q, k = LigerRopeFunction.apply(_heads_first(q), _heads_first(k), cos.float(), sin.float())
        return _heads_first(q[0])[0], _heads_first(k[0])[0]

    return turn


def _heads_first(x: Tensor) -> Tensor:
    """[L, heads, D] to [1, heads, L, D]; and of [heads, L, D] the way back."""
    return x.transpose(0, 1)[None]


@lru_cache
def turns_halves(rotation: Rotation) -> bool:
    """Whether it computes x cos + (-x2, x1) sin of the halves x1 and x2 of each head, for one layout or the other."""
    numbers = torch.arange(48.0, device="cpu").sin()  # no random ones: a run's seed is its own
    q, angles = numbers.view(1, 2, 3, 8), numbers[:12].view(1, 3, 4).repeat(1, 1, 2)
    k, cos, sin = q[:, :1] + 1, angles.cos(), angles.sin()
    expected = [x * cos[:, None] + torch.cat((-x[..., 4:], x[..., :4]), -1) * sin[:, None] for x in (q, k)]
    if rotation.__name__ == _NAMES[1]:
        q, k, *expected = (x[0].transpose(0, 1) for x in (q, k, *expected))
        cos, sin = cos[0], sin[0]
    try:
        found = rotation(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False  # it takes something else
    return all(
        one.shape == other.shape and torch.allclose(one, other, atol=1e-6)
        for one, other in zip(found, expected, strict=True)
    )


__all__ = ["fuse_rotary", "turns_halves"]
