"""Two runs side by side: curves over one another, held-out metrics in one table, and the options that differ.

It takes what both runs' own charts and evaluations say, and computes only differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmr1.config.access import AccessOptions
from mmr1.config.options import StackOptions
from mmr1.report.charts import Chart, Line
from mmr1.report.curves import curves
from mmr1.report.held_out import Series, series
from mmr1.report.run_files import RunFiles
from mmr1.report.series import Values

# Where things lie and who may talk to whom, and not what was trained.
_PLACES = {*AccessOptions.model_fields, *StackOptions.model_fields, "image_cache"} - {"max_restarts"}


@dataclass(frozen=True)
class HeldOutRow:
    """One metric: of this run and of the other, at first and at last, where they were measured."""

    task: str
    mode: str
    metric: str
    headline: bool
    this: Series | None
    other: Series | None

    @property
    def difference(self) -> float | None:
        """This run's last value minus the other's."""
        return self.this.last.value - self.other.last.value if self.this and self.other else None


@dataclass(frozen=True)
class Comparison:
    """What the page shows of two runs. `options` are (name, this run's, the other's)."""

    this_name: str
    other_name: str
    held_out: list[HeldOutRow]
    options: list[tuple[str, str, str]]
    charts: list[Chart]


def compare(run: RunFiles, other: RunFiles) -> Comparison:
    """Everything in which they can be compared. Runs of one name are told apart by their folders."""
    names = [str(one.config.get("run") or one.folder.name) for one in (run, other)]
    if names[0] == names[1]:
        names = [str(one.folder) for one in (run, other)]
    options = differing(run.config, other.config)
    return Comparison(names[0], names[1], _held_out(run, other), options, _charts(run, other, names))


def differing(this: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Options whose values differ, by name; `not set` where one run does not have it."""
    names = sorted({*this, *other} - _PLACES)
    rows = [(name, _value(this, name), _value(other, name)) for name in names]
    return [row for row in rows if row[1] != row[2]]


def _value(config: dict[str, Any], name: str) -> str:
    return str(config[name]) if name in config else "not set"


def _held_out(run: RunFiles, other: RunFiles) -> list[HeldOutRow]:
    mine, theirs = series(run.evaluations), series(other.evaluations)
    rows = []
    for key in dict.fromkeys([*mine, *theirs]):
        headline = any(one.headline for one in (mine.get(key), theirs.get(key)) if one)
        rows.append(HeldOutRow(key[0], key[1], key[2], headline, mine.get(key), theirs.get(key)))
    return rows


def _charts(run: RunFiles, other: RunFiles, names: Sequence[str]) -> list[Chart]:
    """This run's charts with the other's curves in them, dashed; then what the other alone has."""
    theirs = {chart.title: chart for chart in curves(other)}
    both = [_overlaid(chart, theirs.pop(chart.title, None), names) for chart in curves(run)]
    alone = [_overlaid(replace(chart, lines=()), chart, names) for chart in theirs.values()]
    return [*both, *alone]


def _overlaid(chart: Chart, other: Chart | None, names: Sequence[str]) -> Chart:
    """One chart of both. What was stacked is lines: areas would hide each other."""
    steps = sorted({*chart.steps, *(other.steps if other else ())})
    lines = [
        replace(
            line,
            name=_named(line, names[0]),
            values=_at(steps, chart.steps, line.values),
            low=_at(steps, chart.steps, line.low) if line.low else (),
            high=_at(steps, chart.steps, line.high) if line.high else (),
        )
        for line in chart.lines
    ]
    places = {line.name: place for place, line in enumerate(chart.lines)}
    for line in other.lines if other else ():
        place = places.setdefault(line.name, len(places))
        values = _at(steps, other.steps if other else (), line.values)
        lines.append(Line(_named(line, names[1]), values, partner=place))
    return replace(chart, steps=steps, lines=lines, stacked=False)


def _named(line: Line, run: str) -> str:
    return f"{line.name} ({run})"


def _at(steps: Sequence[float], own: Sequence[float], values: Values) -> Values:
    found = dict(zip(own, values, strict=True))
    return [found.get(step) for step in steps]


__all__ = ["Comparison", "HeldOutRow", "compare", "differing"]
