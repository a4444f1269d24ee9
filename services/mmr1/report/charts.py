"""The report's curves as inline SVG: lines with bands, and stacked areas. Knows numbers, not their origin.

Colours are CSS variables, so that one drawing serves light and dark. Every text goes through `escape`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from mmr1.report.series import Values, short, thin, ticks

WIDTH, HEIGHT = 400, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 24  # pixels around the plotting area


@dataclass(frozen=True)
class Line:
    """One curve. `low` and `high`, when given, are the edges of a band around it.

    `partner` is the place in the chart of the curve whose colour it shares: it is that of another run, and dashed.
    """

    name: str
    values: Values
    low: Values = ()
    high: Values = ()
    partner: int | None = None


@dataclass(frozen=True)
class Chart:
    """One drawing: a title, a sentence on what it shows, and its curves over `steps`."""

    title: str
    note: str
    steps: Sequence[float]
    lines: Sequence[Line]
    stacked: bool = False
    from_zero: bool = False
    first_colour: int = 1
    unit: str = ""

    @property
    def empty(self) -> bool:
        return not any(value is not None for line in self.lines for value in line.values)


def colour(chart: Chart, place: int) -> str:
    """The CSS colour of the chart's curve number `place`."""
    partner = chart.lines[place].partner
    return f"var(--c{((place if partner is None else partner) + chart.first_colour - 1) % 8 + 1})"


def svg(chart: Chart) -> str:
    """The drawing, as an <svg> element."""
    steps, lines = _thinned(chart)
    tops = _stack(lines) if chart.stacked else []
    marks = ticks(*_range(chart, lines, tops))
    x, y = _scales(steps, marks)
    parts = [_axes(steps, marks, x, y)]
    for place, line in enumerate(lines):
        paint = colour(chart, place)
        if chart.stacked:
            base = tops[place - 1] if place else [0.0] * len(steps)
            parts.append(f'<path class="area" style="fill:{paint}" d="{_area(steps, base, tops[place], x, y)}"/>')
            continue
        if line.low and line.high:
            parts.append(f'<path class="band" style="fill:{paint}" d="{_area(steps, line.low, line.high, x, y)}"/>')
        style = "line" if line.partner is None else "line other"
        parts.append(f'<path class="{style}" style="stroke:{paint}" d="{_path(steps, line.values, x, y)}"/>')
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    label = escape(f"{chart.title}. {chart.note}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{label}">{"".join(parts)}</svg>'


def readout(chart: Chart) -> dict[str, Any]:
    """What the page's script shows under the pointer: places in pixels, steps, and each curve's values as text."""
    steps, lines = _thinned(chart)
    x, _ = _scales(steps, [0.0, 1.0])
    return {
        "x": [round(x(step), 1) for step in steps],
        "steps": [short(step) for step in steps],
        "lines": [
            {
                "name": line.name,
                "values": ["-" if value is None else short(value) + chart.unit for value in line.values],
            }
            for line in lines
        ],
    }


def _thinned(chart: Chart) -> tuple[list[float], list[Line]]:
    flat: list[Values] = []
    for line in chart.lines:
        flat += [line.values, line.low or [None] * len(chart.steps), line.high or [None] * len(chart.steps)]
    steps, thinned = thin(chart.steps, flat)
    lines = []
    for place, line in enumerate(chart.lines):
        values, low, high = thinned[3 * place : 3 * place + 3]
        lines.append(replace(line, values=values, low=low if line.low else (), high=high if line.high else ()))
    return steps, lines


def _stack(lines: Sequence[Line]) -> list[list[float]]:
    tops: list[list[float]] = []
    for line in lines:
        below = tops[-1] if tops else [0.0] * len(line.values)
        tops.append([base + (value or 0.0) for base, value in zip(below, line.values, strict=True)])
    return tops


def _range(chart: Chart, lines: Sequence[Line], tops: Sequence[Sequence[float]]) -> tuple[float, float]:
    edges: list[Values] = [values for line in lines for values in (line.values, line.low, line.high)]
    present = [value for values in (tops or edges) for value in values if value is not None]
    low, high = min(present), max(present)
    if chart.stacked or chart.from_zero:
        low, high = min(0.0, low), max(0.0, high)
    return low, high


def _scales(
    steps: Sequence[float], marks: Sequence[float]
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    begin, end = steps[0], steps[-1]
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(step: float) -> float:
        return LEFT + (across * (step - begin) / (end - begin) if end > begin else across / 2)

    def y(value: float) -> float:
        return TOP + up * (marks[-1] - value) / (marks[-1] - marks[0])

    return x, y


def _axes(
    steps: Sequence[float], marks: Sequence[float], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    parts = []
    for mark in marks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>')
        parts.append(
            f'<text class="mark" x="{LEFT - 7}" y="{y(mark) + 3.5:.1f}" text-anchor="end">{short(mark)}</text>'
        )
    whole = [mark for mark in ticks(steps[0], steps[-1], 6) if steps[0] <= mark <= steps[-1] and mark == round(mark)]
    for mark in whole or [steps[0]]:
        parts.append(f'<text class="mark" x="{x(mark):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(mark)}</text>')
    return "".join(parts)


def _path(steps: Sequence[float], values: Values, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """Moves and lines; a gap where a value is missing, and a dot where one stands alone."""
    commands: list[str] = []
    for place, value in enumerate(values):
        if value is None:
            continue
        point = f"{x(steps[place]):.1f} {y(value):.1f}"
        starts = place == 0 or values[place - 1] is None
        ends = place + 1 == len(values) or values[place + 1] is None
        commands.append(f"M{point}h.01" if starts and ends else f"{'M' if starts else 'L'}{point}")
    return "".join(commands)


def _area(
    steps: Sequence[float], low: Values, high: Values, x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    there: list[str] = []
    back: list[str] = []
    for step, bottom, top in zip(steps, low, high, strict=True):
        if bottom is not None and top is not None:
            there.append(f"{x(step):.1f} {y(top):.1f}")
            back.append(f"{x(step):.1f} {y(bottom):.1f}")
    return "M" + "L".join(there + back[::-1]) + "Z" if there else ""


__all__ = ["Chart", "Line", "colour", "readout", "svg"]
