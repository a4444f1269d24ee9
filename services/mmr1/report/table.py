"""The table at the end of a run, for a terminal. Knows only RunResult."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mmr1.report.result import MODES, RunResult


def print_table(result: RunResult, console: Console | None = None) -> None:
    """Print the figures of result.json; what was not measured shows as a dash."""
    console = console or Console()
    heldout = Table(title=f"Held-out accuracy, {_count(result.heldout.n)} problems", title_justify="left")
    heldout.add_column("")
    for column in ("before", "after", "change"):
        heldout.add_column(column, justify="right")
    for mode in MODES:
        gain = result.heldout.gain(mode)
        heldout.add_row(
            mode,
            percent(result.heldout.before[mode]),
            percent(result.heldout.after[mode]),
            "-" if gain is None else f"{100 * gain:+.1f} points",
        )
    facts = Table(show_header=False, title="Run", title_justify="left")
    for name, value in _facts(result):
        facts.add_row(name, value)
    console.print(heldout)
    console.print(facts)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def minutes(seconds: float | None) -> str:
    """A duration for people: 42 s, 7 min 05 s, 2 h 03 min."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _facts(result: RunResult) -> list[tuple[str, str]]:
    worst, mean = result.parity["max_abs_dlogp"], result.parity["mean_abs_dlogp"]
    parity = "-" if mean is None else f"mean {mean:.1e}, max {worst:.1e}" if worst is not None else f"mean {mean:.1e}"
    ledger = result.ledger
    parts = "  ".join(f"{name} {_count(ledger[name])}" for name in ledger)
    verdict = {True: "balances", False: "DOES NOT BALANCE", None: "not written"}[result.balanced]
    return [
        ("task", result.task or "-"),
        ("seed", _count(result.seed)),
        ("steps", f"{result.steps} in {minutes(result.seconds)}"),
        ("weight updates", str(result.weight_updates)),
        ("parity, |delta log p|", parity),
        ("ledger", f"{parts}  ({verdict})"),
    ]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
