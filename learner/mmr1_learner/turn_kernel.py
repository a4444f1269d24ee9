"""Heads turned by rotary positions where they lie, as one kernel for a GPU: read once, written once, in any strides.

Liger's takes queries and keys in an order of its own, to which they are copied before and back after, in both passes.
Triton comes with torch for CUDA; this file is imported when the first image lies on a GPU. It knows no attention.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _turn(  # type: ignore[no-untyped-def]
    x, y, cos, sin, length, heads,
    x_window, x_head, x_token, y_head, y_token,
    half: tl.constexpr, WAY: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One program a token, all its heads. `WAY` 1 turns, -1 is the way back of a gradient, 0 copies.

    Half a head's width is a constant: as a number of the call it would be of unknown divisibility, and each element
    would be loaded by itself.
    """
    token = tl.program_id(0).to(tl.int64)
    head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    there = (head < heads) & (place < half)
    source = x + (token // length) * x_window + (token % length) * x_token + head * x_head + place
    first = tl.load(source, mask=there, other=0).to(tl.float32)
    second = tl.load(source + half, mask=there, other=0).to(tl.float32)
    if WAY != 0:
        angle = token * 2 * half + place
        is_angle = place < half
        cos_1 = tl.load(cos + angle, mask=is_angle, other=0).to(tl.float32)
        cos_2 = tl.load(cos + angle + half, mask=is_angle, other=0).to(tl.float32)
        sin_1 = tl.load(sin + angle, mask=is_angle, other=0).to(tl.float32)
        sin_2 = tl.load(sin + angle + half, mask=is_angle, other=0).to(tl.float32)
        if WAY == 1:
            turned_1, turned_2 = first * cos_1 - second * sin_1, second * cos_2 + first * sin_2
        else:
            turned_1, turned_2 = first * cos_1 + second * sin_2, second * cos_2 - first * sin_1
        first, second = turned_1, turned_2
    target = y + token * y_token + head * y_head + place
    tl.store(target, first.to(y.dtype.element_ty), mask=there)
    tl.store(target + half, second.to(y.dtype.element_ty), mask=there)


def turn_on_gpu(x: Any, y: Any, cos: Any, sin: Any, way: int) -> None:
    """Write x, turned, to y, which may be the same memory.

    Args:
        x: [windows, length, heads, D], D without gaps.
        y: [windows * length, heads, D], D without gaps.
        cos, sin: [windows * length, D], without gaps.
        way: 1 turns, -1 is the transposed turn of a gradient, 0 copies.
    """
    windows, length, heads, width = x.shape
    _turn[(windows * length,)](
        x, y, cos, sin, length, heads,
        x.stride(0), x.stride(2), x.stride(1), y.stride(1), y.stride(0),
        half=width // 2, WAY=way, HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(width // 2),
    )  # fmt: skip


__all__ = ["turn_on_gpu"]
