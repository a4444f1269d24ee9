"""The OCR task: read a line of digits. Its answer is their text, from left to right.

This file knows nothing of files, models or templates.
"""

from __future__ import annotations

import numpy as np

from mmr1.digits.canvas import PATCH, Drawn, compose_in_cells
from mmr1.digits.scans import Scans

QUESTION = "Read the line of digits."
SMALLEST = 18  # a digit's side in pixels; the line is 28 high


def draw(rng: np.random.Generator, scans: Scans, side: int) -> Drawn:
    """Digits on a strip of pixels [28, side], from one to as many as fit, unevenly set and with gaps between them."""
    number = int(rng.integers(1, side // PATCH + 1))
    pixels, placements = compose_in_cells(rng, scans, number, PATCH, side, SMALLEST)
    return Drawn(pixels, QUESTION, "".join(str(placement.label) for placement in placements), placements)


__all__ = ["QUESTION", "draw"]
