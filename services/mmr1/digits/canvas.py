"""Digits on a canvas, none over another: at random places and sizes, or where a task wants them.

This file knows nothing of files or of what is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmr1.digits.scans import Scans

Pixels = npt.NDArray[np.uint8]  # [height, width], white on black

PATCH = 28  # a Qwen-VL processor leaves sides alone that are multiples of this
TRIES = 64

Place = tuple[int, int, int, int]  # row of the scans, x, y, size


class Placement(NamedTuple):
    """A digit on the canvas: its scan's id, its label, and its square in pixels."""

    scan: int
    label: int
    x: int
    y: int
    size: int

    @property
    def box(self) -> list[int]:
        """[x1, y1, x2, y2] of the square, in pixels; x2 and y2 are the first that it leaves free."""
        return [self.x, self.y, self.x + self.size, self.y + self.size]


class Sizes(NamedTuple):
    """The smallest and the largest side of a digit, as a share of the canvas's."""

    smallest: float
    largest: float


class Drawn(NamedTuple):
    """A problem as it is drawn: its picture, its words, its answer, and where each digit lies, in the order drawn."""

    pixels: Pixels
    problem: str
    solution: Any
    placements: list[Placement]


def compose(
    rng: np.random.Generator, scans: Scans, num_digits: int, side: int, sizes: Sizes
) -> tuple[Pixels, list[Placement]]:
    """Draw `num_digits` scans at random places of a square canvas.

    Returns:
        pixels [side, side], and where each digit lies, in the order drawn.
    """
    places = _place(rng, scans, num_digits, side, sizes)
    while places is None:  # the first ones left no room for the last: begin again
        places = _place(rng, scans, num_digits, side, sizes)
    return paint(scans, places, side, side)


def compose_in_cells(
    rng: np.random.Generator, scans: Scans, num_digits: int, height: int, width: int, smallest: int
) -> tuple[Pixels, list[Placement]]:
    """Draw `num_digits` scans, each somewhere in a square of 28 pixels of its own, which is what an image token sees.

    Returns:
        pixels [height, width], and where each digit lies, in reading order of the squares: row by row.
    """
    columns = width // PATCH
    cells = np.sort(rng.permutation(columns * (height // PATCH))[:num_digits]).tolist()
    rows = rng.integers(0, len(scans), num_digits).tolist()
    sizes = rng.integers(smallest, PATCH + 1, num_digits)
    offsets = (rng.random((2, num_digits)) * (PATCH - sizes + 1)).astype(int).tolist()
    places = [
        (row, cell % columns * PATCH + right, cell // columns * PATCH + down, size)
        for row, cell, right, down, size in zip(rows, cells, *offsets, sizes.tolist(), strict=True)
    ]
    return paint(scans, places, height, width)


def paint(scans: Scans, places: Sequence[Place], height: int, width: int) -> tuple[Pixels, list[Placement]]:
    """The scans of these rows at these places: pixels [height, width], and the placements in the same order."""
    pixels = np.zeros((height, width), np.uint8)
    drawn = []
    for row, x, y, size in places:
        nearest = np.arange(size) * 8 // size
        pixels[y : y + size, x : x + size] = scans.images[row][nearest][:, nearest]
        drawn.append(Placement(int(scans.ids[row]), int(scans.labels[row]), x, y, size))
    return pixels, drawn


def _place(rng: np.random.Generator, scans: Scans, num_digits: int, side: int, shares: Sizes) -> list[Place] | None:
    """A place for every digit, or None when one found no free square."""
    rows = rng.integers(0, len(scans), num_digits)
    sizes = rng.integers(round(shares.smallest * side), round(shares.largest * side) + 1, num_digits)
    corners = rng.random((num_digits, TRIES, 2))  # scaled below: one draw for all is three times faster
    taken: list[Place] = []
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


__all__ = ["PATCH", "Drawn", "Pixels", "Place", "Placement", "Sizes", "compose", "compose_in_cells", "paint"]
