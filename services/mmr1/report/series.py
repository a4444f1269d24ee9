"""Numbers over steps, made ready to be drawn: gaps, smoothing, thinning, round axis marks. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

Values = Sequence[float | None]
MAX_POINTS = 400


def smooth(values: Sequence[float]) -> list[float]:
    """A centred mean over about a tenth of the run (an odd number of steps), narrower at both ends."""
    reach = max(1, len(values) // 20)
    smoothed = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        window = values[place - near : place + near + 1]
        smoothed.append(sum(window) / len(window))
    return smoothed


def thin(steps: Sequence[float], lines: Sequence[Values]) -> tuple[list[float], list[list[float | None]]]:
    """At most MAX_POINTS places: consecutive ones are replaced by their mean."""
    width = math.ceil(len(steps) / MAX_POINTS)
    if width <= 1:
        return list(steps), [list(line) for line in lines]
    starts = range(0, len(steps), width)
    places = [float(steps[min(start + width, len(steps)) - 1]) for start in starts]
    return places, [[_mean(line[start : start + width]) for start in starts] for line in lines]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `count` steps apart."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def short(value: float) -> str:
    """A number as an axis or a read-out shows it: 12.5k, 0.034, 1.2e-6."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size == 0 or size >= 1e-3:
        return f"{value:.4g}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def _mean(values: Values) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
