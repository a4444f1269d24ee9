"""The detection task: every digit of the picture, its box in pixels and which one it is.

This file knows nothing of files, models or templates.
"""

from __future__ import annotations

import numpy as np

from mmr1.digits.canvas import Drawn, compose_in_cells
from mmr1.digits.scans import Scans

QUESTION = "Which digits are there? Give their boxes."
MOST_DIGITS = 3
SMALLEST = 18  # a digit's side in pixels


def draw(rng: np.random.Generator, scans: Scans, side: int) -> Drawn:
    """One to three digits, row by row. A score asks for no order; one that is always the same is easier to learn."""
    pixels, placements = compose_in_cells(rng, scans, int(rng.integers(1, MOST_DIGITS + 1)), side, side, SMALLEST)
    objects = [{"bbox_2d": placement.box, "label": str(placement.label)} for placement in placements]
    return Drawn(pixels, QUESTION, objects, placements)


__all__ = ["MOST_DIGITS", "QUESTION", "draw"]
