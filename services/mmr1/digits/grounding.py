"""The grounding task: where is the one 7? Its answer is a box in pixels.

This file knows nothing of files, models or templates.
"""

from __future__ import annotations

import numpy as np

from mmr1.digits.canvas import Drawn, compose_in_cells
from mmr1.digits.scans import Scans

QUESTION = "Where is the {digit}? Give its box."
FEWEST_DIGITS, MOST_DIGITS = 2, 4
SMALLEST = 18  # a digit's side in pixels


def draw(rng: np.random.Generator, scans: Scans, side: int) -> Drawn:
    """Two to four digits, and the box of one whose like is not in the picture a second time."""
    while True:
        number = int(rng.integers(FEWEST_DIGITS, MOST_DIGITS + 1))
        pixels, placements = compose_in_cells(rng, scans, number, side, side, SMALLEST)
        labels = [placement.label for placement in placements]
        single = [placement for placement in placements if labels.count(placement.label) == 1]
        if single:
            asked = single[int(rng.integers(len(single)))]
            return Drawn(pixels, QUESTION.format(digit=asked.label), asked.box, placements)


__all__ = ["QUESTION", "draw"]
