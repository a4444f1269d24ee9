"""Confidence intervals by the bootstrap: the problems are drawn again, with replacement, and the metric is taken anew.

Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979); the interval is the percentile one. Problems are what
is drawn, never single completions: those of one problem depend on each other. Knows no task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000
_LEVELS = (0.025, 0.975)  # of the 95 % interval
_CHUNK = 2**22  # numbers at once


@dataclass(frozen=True, slots=True)
class Metric:
    """A value with its 95 % interval; None where it is not defined, as an AP without any true box."""

    value: float | None
    low: float | None
    high: float | None

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high}


def drawn_counts(num_problems: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each problem is in each resample, as parts [b, num_problems] of `resamples` rows in all.

    The same seed and number of problems give the same draws, so two models are compared on the same resamples.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // num_problems)
    evenly = np.full(num_problems, 1.0 / num_problems)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        yield generator.multinomial(num_problems, evenly, size=rows).astype(np.float64)


def ratios(totals: Floats, weights: Floats, resamples: int, seed: int) -> list[Metric]:
    """For each of M metrics the ratio of two sums over the problems: a mean where all weights are 1.

    Args:
        totals: [P, M], weights: [P, M].

    Returns:
        M metrics; None where the weights of all problems add up to 0.
    """
    values, drawn = drawn_ratios(totals, weights, resamples, seed)
    return [interval(values[index], drawn[:, index]) for index in range(totals.shape[1])]


def drawn_ratios(totals: Floats, weights: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """The same ratios, [M], and those of each resample, [resamples, M]; NaN where all weights are 0."""
    values = _divided(totals.sum(axis=0), weights.sum(axis=0))
    drawn = [_divided(counts @ totals, counts @ weights) for counts in drawn_counts(len(totals), resamples, seed)]
    return values, np.concatenate(drawn) if drawn else np.empty((0, totals.shape[1]))


def interval(value: float, drawn: Floats | Sequence[float]) -> Metric:
    """The metric from its value and those of the resamples. Resamples in which it is not defined (NaN) are left out."""
    if np.isnan(value):
        return Metric(None, None, None)
    defined = np.asarray(drawn, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    if not len(defined):
        return Metric(float(value), None, None)
    low, high = np.quantile(defined, _LEVELS)
    return Metric(float(value), float(low), float(high))


def _divided(totals: Floats, weights: Floats) -> Floats:
    return np.divide(totals, weights, out=np.full_like(totals, np.nan), where=weights > 0)
