"""The table at the end of a run, for a terminal. Knows only RunResult."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mmr1.metric_names import is_share, words_for
from mmr1.report.result import MODES, Heldout, RunResult


def print_table(result: RunResult, console: Console | None = None) -> None:
    """Print the figures of result.json; what was not measured shows as a dash."""
    console = console or Console()
    for task, found in result.tasks.items():
        title = f"Held-out {words_for(found.headline)}, {_count(found.n)} problems"
        _print_heldout(console, title if len(result.tasks) == 1 else f"{task}: {title}", found.values())
    facts = Table(show_header=False, title="Run", title_justify="left")
    for name, value in _facts(result):
        facts.add_row(name, value)
    console.print(facts)


def _print_heldout(console: Console, title: str, heldout: Heldout) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for mode in MODES:
        gain = heldout.gain(mode)
        table.add_row(
            mode,
            measured(heldout.metric, heldout.before[mode]),
            measured(heldout.metric, heldout.after[mode]),
            "-" if gain is None else change(heldout.metric, gain),
        )
    console.print(table)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def measured(metric: str, value: float | None) -> str:
    """A metric's value: a share in percent, any other as the number that it is."""
    return percent(value) if value is None or is_share(metric) else f"{value:.3f}"


def change(metric: str, difference: float) -> str:
    return f"{100 * difference:+.1f} points" if is_share(metric) else f"{difference:+.3f}"


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
