"""The report of a folder that `mmr1 sft` has left: its losses, before and after, as table, result.json and report.html.

Fine-tuning samples nothing and scores nothing, so there is no reward, no ledger and no sample to show. The curves are
drawn by the same charts as a run's; which they are is known here.
"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from mmr1.report.charts import Chart, Line
from mmr1.report.curves import parts_of, plain
from mmr1.report.result import seconds_of, versions_of
from mmr1.report.run_files import Record, RunFiles, number
from mmr1.report.series import short
from mmr1.report.table import minutes, percent

_HELD_OUT = ("loss", "answer_probability")
_PLAIN = (
    ("Gradient norm", "Before clipping", [("norm", "grad_norm")], 3),
    ("Learning rate", "Of the step", [("learning rate", "learning_rate")], 5),
    ("Tokens per second", "Answer tokens, by wall time of the step", [("tokens/s", "tokens_per_second")], 6),
)


def summarise(run: RunFiles) -> dict[str, Any]:
    """What result.json holds: losses are means of -log p over answer tokens; what was not measured is null."""
    losses = [loss for record in run.metrics if (loss := number(record, "loss")) is not None]
    held_out = {str(record.get("name")): record for record in run.evaluations}  # the last of each name
    sides = {name: held_out.get(name, {}) for name in ("before", "after")}
    return {
        "kind": "fine_tuning",
        "task": run.config.get("task"),
        "seed": run.config.get("seed"),
        "steps": len(run.metrics),
        "seconds": seconds_of(run),
        "loss": {"first": losses[0] if losses else None, "last": losses[-1] if losses else None},
        "heldout": {
            "n": next((record["n"] for record in sides.values() if isinstance(record.get("n"), int)), None),
            **{name: {key: number(record, key) for key in _HELD_OUT} for name, record in sides.items()},
        },
        "versions": versions_of(run),
    }


def as_json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2) + "\n"


def curves(run: RunFiles) -> list[Chart]:
    """Its charts, in the order of the page; one without any data is left out."""
    steps = [float(record["step"]) for record in run.metrics]
    if not steps:
        return []
    measured = {float(record["step"]): record for record in run.evaluations if isinstance(record.get("step"), int)}
    training = [number(record, "loss") for record in run.metrics]
    charts = [
        Chart("Loss", "Mean of -log p over the step's answer tokens", steps, [Line("loss", training)], from_zero=True),
        *(_held_out(measured, *row) for row in zip(_HELD_OUT, ("Held-out loss", "Answer probability"), strict=True)),
        *(plain(steps, run.metrics, *row) for row in _PLAIN),
        parts_of(steps, run.metrics, "phases", "Seconds by phase", "Where the step's wall time went", unit=" s"),
    ]
    return [chart for chart in charts if not chart.empty]


def _held_out(measured: dict[float, Record], key: str, title: str) -> Chart:
    note = {
        "loss": "Mean of -log p over the held-out answers' tokens",
        "answer_probability": "Share of held-out problems that sampling at temperature 1 would answer word for word",
    }[key]
    steps = sorted(measured)
    values = [number(measured[step], key) for step in steps]
    return Chart(title, note, steps, [Line(title.lower(), values)], from_zero=True, first_colour=3)


def print_summary(result: dict[str, Any], console: Console | None = None) -> None:
    """The figures of result.json; what was not measured shows as a dash."""
    console = console or Console()
    heldout = result["heldout"]
    table = Table(title=f"Held-out answers, {_show(heldout['n'])} problems", title_justify="left")
    table.add_column("")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    table.add_row("loss", *(_show(heldout[name]["loss"]) for name in ("before", "after")))
    table.add_row("answer probability", *(percent(heldout[name]["answer_probability"]) for name in ("before", "after")))
    facts = Table(show_header=False, title="Fine-tuning", title_justify="left")
    facts.add_row("task", str(result["task"] or "-"))
    facts.add_row("steps", f"{result['steps']} in {minutes(result['seconds'])}")
    facts.add_row("loss", f"{_show(result['loss']['first'])} at first, {_show(result['loss']['last'])} at last")
    console.print(table)
    console.print(facts)


def _show(value: float | None) -> str:
    return "-" if value is None else short(value)


__all__ = ["as_json", "curves", "print_summary", "summarise"]
