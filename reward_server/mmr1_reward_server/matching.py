"""One-to-one matching of what was predicted with what is there (Hungarian; scipy's linear_sum_assignment).

It works on matrices of overlaps or on points, and knows no label, no response and no reward.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .boxes import Bools, Floats, reaching

Pairs = list[tuple[int, int]]

# What a pair is worth besides its overlap: small enough never to outweigh one that can be told apart, large enough for
# ties to be settled by rule. Otherwise they would be settled by the order in which the model happened to write.
_PER_PAIR = 1e-7
_PER_PREFERRED_PAIR = 1e-10


def match_overlaps(
    overlaps: Floats, minimum: float, *, allowed: Bools | None = None, preferred: Bools | None = None
) -> Pairs:
    """The (row, column) pairs with the largest total overlap, by row; each row and column is in one pair at most.

    `overlaps`: (N, M), such as pairwise_iou. Only pairs that overlap, by at least `minimum`, and that are `allowed`
    (N, M) take part: the largest total is sought among these, not among all with the rest dropped afterwards, which
    would lose pairs. Of equal totals (to 1e-7 a pair) the one with more pairs wins, then with more `preferred` (N, M).
    """
    possible = reaching(overlaps, minimum)
    if allowed is not None:
        possible &= allowed
    rows, columns = np.flatnonzero(possible.any(axis=1)), np.flatnonzero(possible.any(axis=0))
    values = overlaps + _PER_PAIR
    if preferred is not None:
        values = values + _PER_PREFERRED_PAIR * preferred
    # An impossible pair is worth nothing, as being left alone is; all that are chosen nevertheless are dropped.
    chosen = assign(np.where(possible, values, 0.0)[np.ix_(rows, columns)], maximize=True)
    pairs = zip(rows[chosen[0]].tolist(), columns[chosen[1]].tolist(), strict=True)
    return [(row, column) for row, column in pairs if possible[row, column]]


def match_points(predicted: Floats, true: Floats) -> tuple[Pairs, Floats]:
    """All min(N, M) pairs with the smallest total Euclidean distance, by row, and the distance of each pair.

    (N, 2), (M, 2), finite -> min(N, M) pairs, (min(N, M),).
    """
    distances = np.hypot(
        predicted[:, None, 0] - true[None, :, 0],
        predicted[:, None, 1] - true[None, :, 1],
    )
    rows, columns = assign(distances)
    return list(zip(rows.tolist(), columns.tolist(), strict=True)), distances[rows, columns]


def assign(values: Floats, *, maximize: bool = False) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """scipy's assignment. Imported when first used: it takes longer than all else that a server needs to start."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(values, maximize=maximize)
    return rows, columns
