"""The right half of reward.png says which metric it shows, with the interval that was measured of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from mmr1.evaluation.resampling import ratios
from mmr1.report.page import page
from mmr1.report.picture import _held_out, _title, draw
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
    axes = panel(result)
    bars = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    segments = [bar.lines[2][0].get_segments()[0] for bar in bars]
    return axes.get_title(loc="left"), [(segment[0][1], segment[1][1]) for segment in segments]


def panel(result: RunResult) -> Axes:
    axes = Figure().add_subplot()
    _held_out(axes, result)
    return axes


def rows_of(metric: str, value: float, low: float, high: float) -> list[dict[str, object]]:
    """The same before and after."""
    metrics = {metric: {"value": value, "low": low, "high": high}}
    return lines(task="mathematics", headline=metric, metrics=metrics)


def test_a_mean_of_scores_has_its_own_name_and_its_measured_interval(tmp_path: Path) -> None:
    result = result_of(tmp_path, lines())
    title, drawn = ends(result)
    assert title == "Held-out mean IoU" and "held-out mean IoU" in _title(result)
    assert drawn == [pytest.approx(pair) for pair in [(0.19, 0.23)] * 2 + [(0.39, 0.43)] * 2]


def test_a_share_of_an_older_release_has_the_interval_of_its_size(tmp_path: Path) -> None:
    title, drawn = ends(result_of(tmp_path, lines(task="counting", headline="accuracy", metrics=None)))
    assert title == "Held-out accuracy"
    assert drawn[0] == pytest.approx(interval(0.2, 100)) and drawn[2] == pytest.approx(interval(0.4, 100))


def test_an_interval_that_passes_its_value_by_a_rounding_is_drawn(tmp_path: Path) -> None:
    scores = np.full((64, 1), 0.1)
    (measured,) = ratios(scores, np.ones_like(scores), 1000, 0)
    assert measured.value is not None and measured.low is not None and measured.high is not None
    assert measured.low > measured.value, "as the bootstrap gives it"
    result = result_of(tmp_path, rows_of("mean_iou", measured.value, measured.low, measured.high))
    assert ends(result)[1] == [pytest.approx((0.1, 0.1))] * 4


@pytest.mark.parametrize("value", [-2.5, 0.0, 7.25])
def test_a_mean_reward_is_a_number_on_a_scale_of_its_own(tmp_path: Path, value: float) -> None:
    result = result_of(tmp_path, rows_of("mean_reward", value, value - 0.5, value + 0.5))
    axes = panel(result)
    bottom, top = axes.get_ylim()
    assert bottom < min(0.0, value - 0.5) + 1e-9 and top > max(0.0, value + 0.5)
    words = [text.get_text() for text in (*axes.texts, *axes.get_xticklabels())] + [_title(result)]
    assert f"{value:.3f}" in words and "greedy\n+0.000" in words and not any("%" in word for word in words)
    run = read_run(tmp_path / "run")
    draw(run, result)
    shown = page(run, result, [])
    assert "Not evaluated" not in shown and f"{value - 0.5:.3f} to {value + 0.5:.3f}" in shown
    assert 'class="fill"' not in shown


def test_a_share_that_is_nothing_has_a_scale_too(tmp_path: Path) -> None:
    axes = panel(result_of(tmp_path, rows_of("mean_iou", 0.0, 0.0, 0.0)))
    assert axes.get_ylim() == (0.0, 1.12)
