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
    """The same function, by the kernel for what it has been tried with, and by itself for everything else."""
    of_images = rotation.__name__ == _NAMES[1]

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        is_known = _are_images(q, k, cos) if of_images else _are_text(q, k, cos)
        if not q.is_cuda or not is_known or rest or named:
            return rotation(q, k, cos, sin, *rest, **named)
        from liger_kernel.ops.rope import LigerRopeFunction

        # Written over what it is given, where that is contiguous: a projection's output, which no backward pass reads.
        if not of_images:
            text: tuple[Tensor, Tensor] = LigerRopeFunction.apply(q, k, cos, sin)
            return text
        q, k = LigerRopeFunction.apply(_heads_first(q), _heads_first(k), cos.float(), sin.float())
        return _heads_first(q[0])[0], _heads_first(k[0])[0]

    return turn


def _are_text(q: Tensor, k: Tensor, cos: Tensor) -> bool:
    """[B, heads, L, D], angles [B or 1, L, D] of the same type, in which the kernel computes."""
    if (q.dim(), k.dim(), cos.dim()) != (4, 4, 3) or q.dtype != cos.dtype:
        return False
    return q.shape[-2:] == k.shape[-2:] == cos.shape[1:] and cos.shape[0] in (1, q.shape[0])


def _are_images(q: Tensor, k: Tensor, cos: Tensor) -> bool:
    """[L, heads, D], angles [L, D]."""
    return q.dim() == 3 and q.shape == k.shape and cos.shape == (q.shape[0], q.shape[2])


def _heads_first(x: Tensor) -> Tensor:
    """[L, heads, D] to [1, heads, L, D]; and of [heads, L, D] the way back."""
    return x.transpose(0, 1)[None]


@lru_cache
def turns_halves(rotation: Rotation) -> bool:
    """Whether it computes x cos + (-x2, x1) sin of the halves x1 and x2 of each head, in the layout of its name.

    Of text in bfloat16 too, where the kernel computes in it: a function that does so in float32 is left alone.
    """
    numbers = torch.arange(48.0, device="cpu").sin()  # no random ones: a run's seed is its own
    q, angles = numbers.view(1, 2, 3, 8), numbers[:12].view(1, 3, 4).repeat(1, 1, 2)
    given = (q, q + 1, angles.cos(), angles.sin())
    if rotation.__name__ == _NAMES[1]:
        expected = [_heads_first(_turned(x, *given[2:])[0])[0] for x in given[:2]]
        return _gives(rotation, [x[0].transpose(0, 1) for x in given[:2]] + [x[0] for x in given[2:]], expected, 1e-6)
    for dtype, apart in ((torch.float32, 1e-6), (torch.bfloat16, 0.0)):
        cast = [x.to(dtype) for x in (q, q[:, :1] + 1, *given[2:])]
        if not _gives(rotation, cast, [_turned(x, *cast[2:]) for x in cast[:2]], apart):
            return False
    return True


def _gives(rotation: Rotation, given: list[Tensor], expected: list[Tensor], apart: float) -> bool:
    try:
        found = rotation(*given)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False  # it takes something else
    pairs = list(zip(found, expected, strict=True))
    return all(one.shape == other.shape and torch.allclose(one, other, atol=apart) for one, other in pairs)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]


__all__ = ["fuse_rotary", "turns_halves"]
