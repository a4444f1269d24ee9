"""What a step's loss consisted of, as sums that add over forwards and ranks, and their means.

Quantiles come from histograms, because a quantile of parts is no quantile of the whole. It computes no term.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Bins of |log ratio|: twenty to a factor of ten, from what float32 cannot tell from 0 up to e^10. A quantile is
# therefore off by at most 6 % of its logarithm.
_SMALLEST, _DECADES, _PER_DECADE = 1e-4, 5, 20
_NUM_BINS = _DECADES * _PER_DECADE + 1  # on each side of the one at 0, which holds all below _SMALLEST
QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}
TERMS = ("policy", "k1", "k3", "kimikl", "kimifull", "entropy")


class LossReport:
    """Sums over live tokens, ready to be added over forwards and ranks; `means` divides them.

    They stay where they were computed until they are asked for, and come from there all at once: to read a number
    waits for the device.
    """

    def __init__(self) -> None:
        self._scalars: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}  # [bins] of each kind of ratio

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar."""
        _add(self._scalars, name, value.detach().double())

    def add_ratios(self, name: str, log_ratios: Tensor, live: Tensor) -> None:
        """Count the live ones of [N] ratios, given by their logarithms, for `means` to read quantiles from."""
        size = log_ratios.detach().double().nan_to_num(posinf=1e9, neginf=-1e9)
        place = (torch.log10(size.abs().clamp(min=1e-30) / _SMALLEST) * _PER_DECADE).floor() + 1
        index = place.clamp(0, _NUM_BINS - 1).long() * size.sign().long() + _NUM_BINS
        counts = torch.zeros(2 * _NUM_BINS + 1, dtype=torch.float64, device=size.device)
        _add(self._counts, name, counts.index_add_(0, index, live.double()))

    def merge(self, other: LossReport) -> None:
        for name, value in other._scalars.items():
            _add(self._scalars, name, value)
        for name, value in other._counts.items():
            _add(self._counts, name, value)

    @property
    def sums(self) -> dict[str, float]:
        """By name; a ratio's bins as `name#bin`."""
        names = [*self._scalars, *(f"{name}#{bin_}" for name in self._counts for bin_ in range(2 * _NUM_BINS + 1))]
        values = [value.reshape(-1) for value in (*self._scalars.values(), *self._counts.values())]
        return dict(zip(names, torch.cat(values).tolist(), strict=True)) if values else {}


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def means(totals: dict[str, float], num_updates: int = 1) -> dict[str, float]:
    """Per-token means of what was summed over tokens, and losses' means over updates. NaN: nothing to measure.

    A term that is not in the loss has no loss of its own; the four divergences are there whenever a reference is.

    Args:
        num_updates: optimizer steps that the sums are of. Within one, a loss is a sum already.
    """
    tokens = max(1.0, totals["num_tokens"])
    on_policy = totals["on_policy_tokens"]
    return {
        "loss": totals["loss"] / num_updates,
        **{f"{term}_loss": totals.get(f"{term}_loss", math.nan) / num_updates for term in TERMS},
        "num_tokens": totals["num_tokens"],
        "entropy": totals["entropy"] / tokens,
        **{name: totals.get(name, math.nan) / tokens for name in ("kl_k1", "kl_k3", "kl_kimikl", "kl_kimifull")},
        "clip_fraction": totals["clipped_tokens"] / tokens,
        "tis_truncated_fraction": totals.get("truncated_tokens", 0.0) / tokens,
        "importance_masked_fraction": totals.get("masked_tokens", 0.0) / tokens,
        "off_policy_kl": totals["off_policy_kl"] / tokens,
        "mismatch_kl": totals["mismatch_kl"] / on_policy if on_policy else math.nan,
        **_quantiles(totals, "ratio"),
        **_quantiles(totals, "importance"),
    }


def _quantiles(totals: dict[str, float], name: str) -> dict[str, float]:
    """`name`_p01 and so on: each the middle of the bin that the quantile falls into."""
    counts = [totals.get(f"{name}#{bin_}", 0.0) for bin_ in range(2 * _NUM_BINS + 1)]
    return {f"{name}_{label}": _quantile(counts, share) for label, share in QUANTILES.items()}


def _quantile(counts: list[float], share: float) -> float:
    wanted, seen = share * sum(counts), 0.0
    for bin_, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            place = bin_ - _NUM_BINS
            size = _SMALLEST * 10 ** ((abs(place) - 0.5) / _PER_DECADE) if place else 0.0
            return math.exp(math.copysign(size, place))
    return math.nan
