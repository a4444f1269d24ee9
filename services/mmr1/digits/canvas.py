"""Digits at random places and sizes on a square canvas, none over another.

This file knows nothing of files or questions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmr1.digits.scans import Scans

PATCH = 28  # a Qwen-VL processor leaves sides alone that are multiples of this
SMALLEST, LARGEST = 18 / 112, 29 / 112  # a digit's side as a share of the canvas
TRIES = 64


class Placement(NamedTuple):
    """A digit on the canvas: its scan's id, its label, and its square in pixels."""

    scan: int
    label: int
    x: int
    y: int
    size: int


def compose(
    rng: np.random.Generator, scans: Scans, num_digits: int, side: int
) -> tuple[npt.NDArray[np.uint8], list[Placement]]:
    """Draw `num_digits` scans, white on black.

    Returns:
        pixels [side, side] uint8, and where each digit lies, in the order drawn.
    """
    placements = _place(rng, scans, num_digits, side)
    while placements is None:  # the first ones left no room for the last: begin again
        placements = _place(rng, scans, num_digits, side)
    pixels = np.zeros((side, side), np.uint8)
    drawn = []
    for row, x, y, size in placements:
        nearest = np.arange(size) * 8 // size
        pixels[y : y + size, x : x + size] = scans.images[row][nearest][:, nearest]
        drawn.append(Placement(int(scans.ids[row]), int(scans.labels[row]), x, y, size))
    return pixels, drawn


def _place(
    rng: np.random.Generator, scans: Scans, num_digits: int, side: int
) -> list[tuple[int, int, int, int]] | None:
    """(row, x, y, size) of every digit, or None when one found no free square."""
    rows = rng.integers(0, len(scans), num_digits)
    sizes = rng.integers(round(SMALLEST * side), round(LARGEST * side) + 1, num_digits)
    corners = rng.random((num_digits, TRIES, 2))  # scaled below: one draw for all is three times faster
    taken: list[tuple[int, int, int, int]] = []
    for row, size, tries in zip(rows.tolist(), sizes.tolist(), corners.tolist(), strict=True):
        room = side - size + 1
        for u, v in tries:
            x, y = int(u * room), int(v * room)
            if all(x + size <= a or a + s <= x or y + size <= b or b + s <= y for _, a, b, s in taken):
                taken.append((row, x, y, size))
                break
        else:
            return None
    return taken


__all__ = ["PATCH", "Placement", "compose"]
