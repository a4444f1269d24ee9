"""The counting task, in two kinds: "How many digits are there?" and how many there are of one digit.

This file knows nothing of files, models or templates.
"""

from __future__ import annotations

import numpy as np

from mmr1.digits.canvas import Drawn, Sizes, compose
from mmr1.digits.scans import Scans

QUESTION = "How many digits are there?"
OF_ONE = "How many are a {digit}?"
MOST_DIGITS = 7
NUM_KINDS = 2  # of digits in a picture where one kind is to be counted
SIZES = Sizes(18 / 112, 29 / 112)


def draw(rng: np.random.Generator, scans: Scans, side: int) -> Drawn:
    """All digits are to be counted: pixels [side, side], and a number that is uniform from 1 to 7."""
    pixels, placements = compose(rng, scans, int(rng.integers(1, MOST_DIGITS + 1)), side, SIZES)
    return Drawn(pixels, QUESTION, len(placements), placements)


def draw_of_one(rng: np.random.Generator, scans: Scans, side: int) -> Drawn:
    """One digit is to be counted among others: 1 to 7 digits of two kinds, as many of each as chance has it."""
    kinds = rng.permutation(10)[:NUM_KINDS]
    pixels, placements = compose(rng, scans.of(kinds), int(rng.integers(1, MOST_DIGITS + 1)), side, SIZES)
    asked = int(kinds[0])
    count = sum(placement.label == asked for placement in placements)
    return Drawn(pixels, OF_ONE.format(digit=asked), count, placements)


__all__ = ["MOST_DIGITS", "OF_ONE", "QUESTION", "draw", "draw_of_one"]
