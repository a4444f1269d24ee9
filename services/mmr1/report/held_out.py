"""What evaluations.jsonl says of held-out problems, whatever the task: each metric by mode, over the steps.

A line names its headline metric and gives all of them with intervals; one of an older release has an accuracy alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmr1.metric_names import words_for
from mmr1.report.charts import Chart, Line
from mmr1.report.run_files import Record, number

Key = tuple[str, str, str]  # task, mode, metric


@dataclass(frozen=True)
class Measure:
    """One metric's value, with the ends of its 95 % interval where they are on record."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class Series:
    """One metric of one task in one mode, by step. A resumed run measures again: the later counts.

    `before` and `after` are what the run itself called so: before its first step and after its last.
    """

    by_step: dict[int, Measure] = field(default_factory=dict)
    headline: bool = False
    before: Measure | None = None
    after: Measure | None = None

    @property
    def steps(self) -> list[int]:
        return sorted(self.by_step)

    @property
    def first(self) -> Measure:
        return self.by_step[self.steps[0]]

    @property
    def last(self) -> Measure:
        return self.by_step[self.steps[-1]]


def series(evaluations: list[Record]) -> dict[Key, Series]:
    """Everything that was measured, the headline metrics of each task first."""
    found: dict[Key, Series] = {}
    for record in evaluations:
        step = record.get("step")
        if not isinstance(step, int):
            continue
        headline = str(record.get("headline") or "accuracy")
        for name, measure in _measures(record).items():
            key = (str(record.get("task") or ""), str(record.get("mode") or ""), name)
            one = found.setdefault(key, Series())
            one.by_step[step] = measure
            one.headline = one.headline or name == headline
            if record.get("name") in ("before", "after"):
                setattr(one, str(record["name"]), measure)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], not item[1].headline, item[0][2], item[0][1])))


def _measures(record: Record) -> dict[str, Measure]:
    metrics = record.get("metrics")
    if not isinstance(metrics, dict):
        value = number(record, "accuracy")
        return {} if value is None else {"accuracy": Measure(value)}
    measures = {}
    for name, entry in metrics.items():
        parts = entry if isinstance(entry, dict) else {"value": entry}
        value = number(parts, "value")
        if value is not None:
            measures[str(name)] = Measure(value, number(parts, "low"), number(parts, "high"))
    return measures


def held_out_curves(evaluations: list[Record]) -> list[Chart]:
    """A chart of each task's headline metric, for runs that were evaluated while they went on."""
    charts: dict[tuple[str, str], list[tuple[str, Series]]] = {}
    for (task, mode, metric), one in series(evaluations).items():
        if one.headline and len(one.by_step) > 2:
            charts.setdefault((task, metric), []).append((mode, one))
    return [_chart(task, metric, lines) for (task, metric), lines in charts.items()]


def _chart(task: str, metric: str, modes: list[tuple[str, Series]]) -> Chart:
    steps = sorted({step for _, one in modes for step in one.by_step})
    lines = []
    for mode, one in modes:
        at = [one.by_step.get(step) for step in steps]
        low, high = ([getattr(m, edge) if m else None for m in at] for edge in ("low", "high"))
        banded = any(value is not None for value in low)
        lines.append(Line(mode, [m.value if m else None for m in at], low if banded else (), high if banded else ()))
    note = "On problems never trained on; band: 95 % interval, where it is on record"
    return Chart(f"Held-out {words_for(metric)}, {task}".rstrip(", "), note, [float(s) for s in steps], lines)


__all__ = ["Measure", "Series", "held_out_curves", "series"]
