"""docs/results.md and its pictures, from the small files that benchmarks/results.py keeps of its runs.

A figure that no run has measured is not written: a task appears when all four of its runs are there. This file starts
nothing.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from results_recipe import Recipe, differs, recipe_of_run

from mmr1.demo import TASKS
from mmr1.evaluation import HEADLINES
from mmr1.metric_names import words_for
from mmr1.report.picture import AFTER, BEFORE, INK, MUTED, style
from mmr1.report.run_files import number, read_run
from mmr1.report.series import smooth

SEEDS = ("seed0", "seed1", "seed2")
CONTROL = "control"
CONTROL_COLOUR = "#d55e00"  # Okabe and Ito's vermilion
METRICS = {task: words_for(HEADLINES[task]) for task in TASKS}  # what is measured
MODE = "greedy"

INTRODUCTION = """\
# Results of the four demonstrations

`make results` makes this page: three runs of each demonstration, and a fourth, the control, whose rewards are dealt
out at random within each batch, so that nothing can be learned from them. It leaves out the runs whose figures are in
`docs/results/` already. Each run is `mmr1 demo TASK --seed N` with the options of `examples/TASK.yaml`, on the CPU.

Measured are the held-out problems of `data/digits/TASK/eval.json`, drawn from scans that no training problem shows, by
greedy decoding through the run's own rollout and reward servers, before the first step and after the last. A gain is
after minus before; the spread is the largest minus the smallest `after` of the three seeds.

A task is met when the smallest gain of its seeds is larger than their spread, the control ends no higher than the 95 %
interval of what was measured before it, and every run takes less than ten minutes, from its first file to its report:
loading both engines and both measurements are in it. The command ends with 1 when one is not. Runs made with other
options, another model or other problems than these are made again.
"""
LONGEST = 600.0  # seconds of a whole run


@dataclass(frozen=True)
class Run:
    """What docs/results/ keeps of a run: held-out figures in [0, 1], mean reward by step, and how long it took.

    A step in which nothing was scored has no reward. `before_high` ends the 95 % interval of what was measured before.
    """

    before: float
    before_high: float
    after: float
    rewards: list[float | None]
    num_problems: int
    seconds: float  # of training
    whole_seconds: float
    recipe: Recipe

    @property
    def gain(self) -> float:
        return self.after - self.before

    @classmethod
    def read(cls, path: Path) -> Run:
        """Raises ValueError, with the file's name, when it is not what `keep` writes or lacks a measurement."""
        try:
            kept = json.loads(path.read_text())
            heldout = kept["result"]["heldout"]
            ((task, measured),) = kept["result"]["tasks"].items()
            if all(value is None for value in kept["rewards"]):
                raise ValueError("no step has a reward")
            return cls(
                before=float(heldout["before"][MODE]),
                before_high=float(measured["before"][MODE][HEADLINES[task]]["high"]),
                after=float(heldout["after"][MODE]),
                rewards=[None if value is None else float(value) for value in kept["rewards"]],
                num_problems=int(heldout["n"]),
                seconds=float(kept["result"]["seconds"]),
                whole_seconds=float(kept["whole_seconds"]),
                recipe=dict(kept["recipe"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a run that was measured to its end ({error!r}); remove it") from None


def keep(run_dir: Path, path: Path, repository: Path) -> None:
    """Write what this page needs of a finished run: its result.json, the mean reward of every step, and its recipe.

    Raises:
        OSError, ConfigurationError: there is no result.json, or no config.yaml.
        ValueError: it is no run that was measured to its end. `path` is as it was.
    """
    times = [file.stat().st_mtime for file in run_dir.iterdir() if file.is_file()]
    rewards = [number(record, "reward_mean") for record in read_run(run_dir).metrics]
    kept: dict[str, Any] = {
        "result": json.loads((run_dir / "result.json").read_text()),
        "rewards": [None if reward is None else round(reward, 5) for reward in rewards],
        "whole_seconds": round(max(times) - min(times), 1),
        "recipe": recipe_of_run(run_dir, repository),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(kept, indent=1) + "\n")
    try:
        Run.read(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_page(results: Path, docs: Path) -> dict[str, list[str]]:
    """Write docs/results.md and a picture for each task whose runs are all in `results`.

    Returns:
        These tasks, each with what it falls short of.

    Raises:
        ValueError: a file in `results` is no measured run, a task's runs have several recipes, or no task is complete.
    """
    tasks = {}
    for task in METRICS:
        paths = {name: results / f"{task}-{name}.json" for name in (*SEEDS, CONTROL)}
        if all(path.exists() for path in paths.values()):
            tasks[task] = {name: Run.read(path) for name, path in paths.items()}
            for name, run in tasks[task].items():
                if what := differs(run.recipe, tasks[task][SEEDS[0]].recipe):
                    raise ValueError(f"{paths[name]}: other {', '.join(what)} than seed 0 was made with; remove one")
    if not tasks:
        raise ValueError(f"{results}: no task has its {len(SEEDS) + 1} runs; `make results` makes them")
    (docs / "images").mkdir(parents=True, exist_ok=True)
    for task, runs in tasks.items():
        (docs / "images" / f"results-{task}.png").write_bytes(_picture(task, runs))
    pictures = [f"![{task}: reward by step, and held-out figures](images/results-{task}.png)" for task in tasks]
    (docs / "results.md").write_text("\n".join([INTRODUCTION, *_table(tasks), "", *_runs(tasks), "", *pictures]) + "\n")
    return {task: shortcomings(runs) for task, runs in tasks.items()}


def shortcomings(runs: dict[str, Run]) -> list[str]:
    """Of what a task must reach, what it does not."""
    seeds = [runs[name] for name in SEEDS]
    found = []
    if min(run.gain for run in seeds) <= spread(seeds):
        found.append("gain")
    if runs[CONTROL].after > runs[CONTROL].before_high:
        found.append("control")
    if max(run.whole_seconds for run in runs.values()) >= LONGEST:
        found.append("time")
    return found


def spread(runs: list[Run]) -> float:
    return max(run.after for run in runs) - min(run.after for run in runs)


def _table(tasks: dict[str, dict[str, Run]]) -> list[str]:
    rows = [
        "| task | metric | problems | before | after, mean of seeds | gain: mean, smallest | spread of the seeds "
        "| control's gain | met |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, runs in tasks.items():
        seeds = [runs[name] for name in SEEDS]
        after = [run.after for run in seeds]
        before = statistics.mean(run.before for run in seeds)
        gains = [run.gain for run in seeds]
        lacking = shortcomings(runs)
        rows.append(
            f"| {task} | {METRICS[task]} | {seeds[0].num_problems} | {before:.3f} | {statistics.mean(after):.3f} | "
            f"{statistics.mean(gains):+.3f}, {min(gains):+.3f} | {spread(seeds):.3f} | {runs[CONTROL].gain:+.3f} | "
            f"{'no: ' + ', '.join(lacking) if lacking else 'yes'} |"
        )
    return rows


def _runs(tasks: dict[str, dict[str, Run]]) -> list[str]:
    rows = ["| run | before | after | gain | training, s | whole run, s |", "|---|---|---|---|---|---|"]
    for task, runs in tasks.items():
        rows += [
            f"| {task}, {name} | {run.before:.3f} | {run.after:.3f} | {run.gain:+.3f} | {run.seconds:.0f} | "
            f"{run.whole_seconds:.0f} |"
            for name, run in runs.items()
        ]
    return rows


def _picture(task: str, runs: dict[str, Run]) -> bytes:
    """PNG, 1760 x 640 pixels: reward by step on the left, held-out before and after on the right."""
    import io

    figure = Figure(figsize=(11, 4), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 2, width_ratios=[1.75, 1], left=0.06, right=0.985, top=0.8, bottom=0.13, wspace=0.16)
    _rewards(figure.add_subplot(grid[0]), runs)
    _heldout(figure.add_subplot(grid[1]), task, runs)
    title = "OCR" if task == "ocr" else task.capitalize()
    figure.text(0.012, 0.93, title, fontsize=15, fontweight="bold", color=INK, va="center")
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": "MMR1"})
    return content.getvalue()


def _rewards(axes: Axes, runs: dict[str, Run]) -> None:
    style(axes, "Training reward, smoothed")
    axes.set_xlabel("optimizer step", fontsize=9.5, color=MUTED)
    for name, run in runs.items():
        first = name == SEEDS[0]
        label = "control" if name == CONTROL else f"{len(SEEDS)} seeds" if first else None
        colour = CONTROL_COLOUR if name == CONTROL else AFTER
        scored = [(step, reward) for step, reward in enumerate(run.rewards, start=1) if reward is not None]
        steps, rewards = zip(*scored, strict=True)
        axes.plot(steps, smooth(rewards), color=colour, linewidth=2, label=label)
    axes.margins(x=0.01)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=MUTED)


def _heldout(axes: Axes, task: str, runs: dict[str, Run]) -> None:
    style(axes, f"Held-out: {METRICS[task]}")
    for place, (name, run) in enumerate(runs.items()):
        after = CONTROL_COLOUR if name == CONTROL else AFTER
        for value, colour, shift in ((run.before, BEFORE, -0.2), (run.after, after, 0.2)):
            axes.bar(place + shift, value, width=0.37, color=colour, zorder=2)
            axes.annotate(
                f"{value:.3f}", (place + shift, value), (0, 4), textcoords="offset points", ha="center", fontsize=8.5,
                color=INK,
            )  # fmt: skip
    axes.set_xticks(range(len(runs)), list(runs))
    axes.set_ylim(0, 1.15 * max(max(run.before, run.after) for run in runs.values()) or 1)
    axes.grid(visible=False, axis="x")
