"""The right half of reward.png says which metric it shows, with the interval that was measured of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from mmr1.report.picture import _held_out, _title
from mmr1.report.result import RunResult, interval, summarise
from mmr1.report.run_files import read_run
from tests.unit.report.synthetic import write_lines, write_run


def lines(**measured: object) -> list[dict[str, object]]:
    rows = []
    for name, value in (("before", 0.2), ("after", 0.4)):
        metrics = {"mean_iou": {"value": value, "low": value - 0.01, "high": value + 0.03}}
        found = {"task": "grounding", "headline": "mean_iou", "metrics": metrics, **measured, "accuracy": value}
        rows += [{"name": name, "mode": mode, "step": 0, "n": 100, "seconds": 1.0, **found} for mode in MODES]
    return rows


MODES = ("greedy", "sampled")


def result_of(folder: Path, rows: list[dict[str, object]]) -> RunResult:
    run = write_run(folder)
    write_lines(run / "evaluations.jsonl", rows)
    return summarise(read_run(run))


def ends(result: RunResult) -> tuple[str, list[tuple[float, float]]]:
    """The panel's title, and the ends of its error bars from left to right as drawn."""
    axes = Figure().add_subplot()
    _held_out(axes, result)
    bars = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    segments = [bar.lines[2][0].get_segments()[0] for bar in bars]
    return axes.get_title(loc="left"), [(segment[0][1], segment[1][1]) for segment in segments]


def test_a_mean_of_scores_has_its_own_name_and_its_measured_interval(tmp_path: Path) -> None:
    result = result_of(tmp_path, lines())
    title, drawn = ends(result)
    assert title == "Held-out mean IoU" and "held-out mean IoU" in _title(result)
    assert drawn == [pytest.approx(pair) for pair in [(0.19, 0.23)] * 2 + [(0.39, 0.43)] * 2]


def test_a_share_of_an_older_release_has_the_interval_of_its_size(tmp_path: Path) -> None:
    title, drawn = ends(result_of(tmp_path, lines(task="counting", headline="accuracy", metrics=None)))
    assert title == "Held-out accuracy"
    assert drawn[0] == pytest.approx(interval(0.2, 100)) and drawn[2] == pytest.approx(interval(0.4, 100))
