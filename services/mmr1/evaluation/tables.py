"""The metrics of an evaluation as a Markdown table and as a table on a terminal. Knows no metric by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mmr1.evaluation.measuring import TaskResult
from mmr1.evaluation.resampling import Metric

COLUMNS = ("metric", "value", "95 % interval")


def as_markdown(facts: dict[str, Any], results: Sequence[TaskResult]) -> str:
    """results.md: what was evaluated, and a table for each task with the headline in bold."""
    lines = ["# Evaluation", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if value not in (None, "")]
    for result in results:
        lines += ["", f"## {_title(result)}", "", f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|"]
        for name, value, span in _rows(result):
            shown = f"**{name}**" if name == result.headline else name
            lines.append(f"| {shown} | {value} | {span} |")
    return "\n".join(lines) + "\n"


def print_results(results: Sequence[TaskResult], console: Console) -> None:
    """The same tables for people."""
    for result in results:
        table = Table(title=_title(result), title_justify="left")
        for place, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if place else "left")
        for name, value, span in _rows(result):
            table.add_row(name, value, span, style="bold" if name == result.headline else "")
        console.print(table)


def _title(result: TaskResult) -> str:
    answers = "1 answer" if result.num_samples == 1 else f"{result.num_samples} answers"
    problems = "1 problem" if result.num_problems == 1 else f"{result.num_problems:,} problems"
    return f"{result.task}: {problems}, {answers} each"


def _rows(result: TaskResult) -> list[tuple[str, str, str]]:
    return [(name, _shown(metric.value), _span(metric)) for name, metric in result.metrics.items()]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _span(metric: Metric) -> str:
    return "-" if metric.low is None else f"{_shown(metric.low)} to {_shown(metric.high)}"
