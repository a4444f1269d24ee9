"""A run at one glance while it goes on: a panel on a terminal, a line every few steps elsewhere.

Reads what the learner writes into the run's folder (status.json, metrics.jsonl) and nothing else, so it can be started,
stopped and wrong without any effect on the run.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

POLL_SECONDS = 0.25
LINES_PER_RUN = 20  # off a terminal
BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 60
BAR_WIDTH = 72
PHASES = {
    "loading": "loading the model on both sides",
    "parity": "comparing both engines' log-probabilities",
    "evaluating": "measuring on held-out problems",
    "training": "training",
    "paused": "paused: Redis does not take what the learner writes",
    "done": "done",
}


@dataclass
class RunState:
    """What the panel knows. `steps` are the metrics of the latest steps, oldest first."""

    phase: str = "starting"
    detail: str = ""
    steps: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=10_000))

    @property
    def latest(self) -> dict[str, Any]:
        return self.steps[-1] if self.steps else {}


class RunFollower:
    """Reads what has been added to a run's folder since the last look."""

    def __init__(self, run_dir: Path) -> None:
        self.state = RunState()
        self._metrics = run_dir / "metrics.jsonl"
        self._status = run_dir / "status.json"
        self._file = 0  # its inode: a learner that starts anew writes the file anew, without the steps it lost
        self._offset = 0
        self._newest = 0.0  # when the latest step seen was written

    def look(self) -> list[dict[str, Any]]:
        """Update `state`; returns the steps that are new, those that are trained a second time included."""
        if self._status.exists():
            status = json.loads(self._status.read_text())
            self.state.phase, self.state.detail = status["phase"], status.get("detail") or ""
        read = [json.loads(line) for line in self._new_lines()]
        self.state.steps.extend(read)
        new = [step for step in read if step["time"] > self._newest]
        self._newest = max([self._newest, *(step["time"] for step in new)])
        return new

    def _new_lines(self) -> list[bytes]:
        if not self._metrics.exists():
            return []
        with self._metrics.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._offset:
                self._file, self._offset = status.st_ino, 0
                self.state.steps.clear()
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")  # the last line may be half written
        self._offset += len(complete) + len(newline)
        return [line for line in complete.split(b"\n") if line.strip()]


async def follow(run_dir: Path, console: Console, title: str) -> None:
    """Show the run until cancelled."""
    follower = RunFollower(run_dir)
    if console.is_terminal:
        await _panel(follower, console, title)
    else:
        await _lines(follower, console)


async def _panel(follower: RunFollower, console: Console, title: str) -> None:
    with Live(panel(follower.state, title), console=console, auto_refresh=False) as live:
        while True:
            try:
                await asyncio.sleep(POLL_SECONDS)
            finally:  # cancelled: the last step is shown too
                follower.look()
                live.update(panel(follower.state, title), refresh=True)


async def _lines(follower: RunFollower, console: Console) -> None:
    said = ""
    try:
        while True:
            said = _say_new(follower, console, said)
            await asyncio.sleep(POLL_SECONDS)
    finally:
        _say_new(follower, console, said)


def _say_new(follower: RunFollower, console: Console, said: str) -> str:
    new = follower.look()
    now = PHASES.get(follower.state.phase, follower.state.phase)
    if now != said:
        console.print(now, soft_wrap=True, markup=False)
    for step in new:
        number, total = step["step"], step["num_steps"]
        if number % max(1, total // LINES_PER_RUN) == 0 or number == total:
            console.print(summary(step), soft_wrap=True, markup=False, highlight=False)
    return now


def summary(step: dict[str, Any]) -> str:
    """One line for one optimizer step."""
    return "  ".join([f"step {step['step']}/{step['num_steps']}", *(f"{name} {text}" for name, text in _figures(step))])


def panel(state: RunState, title: str) -> Panel:
    """The whole run in a few lines."""
    return Panel(Group(*_rows(state)), title=title, title_align="left", border_style="cyan", width=78)


def sparkline(values: list[float], width: int = SPARK_WIDTH) -> str:
    """`values` in at most `width` characters: neighbours are averaged, the lowest is the lowest bar."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def _rows(state: RunState) -> list[RenderableType]:
    rows: list[RenderableType] = [Text(_phase_text(state), style="bold")]
    if not state.steps:
        return rows
    step = state.latest
    done = BAR_WIDTH * step["step"] // step["num_steps"]
    rows.append(Text("━" * done, style="green").append("━" * (BAR_WIDTH - done), style="bright_black"))
    grid = Table.grid(padding=(0, 2))
    figures = [("step", f"{step['step']}/{step['num_steps']}"), *_figures(step)]
    for _ in range(8):
        grid.add_column(justify="left")
    for begin in range(0, len(figures), 4):
        cells = []
        for name, text in figures[begin : begin + 4]:
            cells += [Text(name, style="dim"), Text(text, style="bold green" if name == "reward" else "")]
        grid.add_row(*cells)
    rows.append(grid)
    rewards = [entry["reward_mean"] for entry in state.steps if entry.get("reward_mean") is not None]
    if rewards:
        spark = Text("reward  ", style="dim").append(f"{min(rewards):.2f} ", style="dim")
        rows.append(spark.append(sparkline(rewards), style="green").append(f" {max(rewards):.2f}", style="dim"))
    return rows


def _phase_text(state: RunState) -> str:
    """The learner's own words where it has any; steps have a row of their own."""
    return state.detail if state.detail and state.phase != "training" else PHASES.get(state.phase, state.phase)


def _figures(step: dict[str, Any]) -> list[tuple[str, str]]:
    shown = (
        ("reward", "reward_mean", "{:.3f}"),
        ("lag", "lag_mean", "{:.2f}"),
        ("tokens/s", "tokens_per_second", "{:,.0f}"),
        ("KL", "kl_k3", "{:.4f}"),
        ("entropy", "entropy", "{:.3f}"),
        ("temperature", "temperature", "{:.2f}"),
        ("s/step", "seconds", "{:.1f}"),
    )
    # A step without anything to train has no loss, KL or reward.
    return [(name, "-" if step.get(key) is None else form.format(step[key])) for name, key, form in shown]
