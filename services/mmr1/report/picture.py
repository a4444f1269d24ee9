"""reward.png: training reward on the left, the held-out metric before and after on the right. Colours for all eyes.

Knows matplotlib's Agg canvas and nothing of pyplot's global state, so it may run inside any process.
"""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mmr1.metric_names import is_share, words_for
from mmr1.report.result import MODES, Heldout, RunResult, interval
from mmr1.report.run_files import RunFiles, number
from mmr1.report.series import smooth
from mmr1.report.table import change, measured, minutes

INK, MUTED, GRID = "#1d2433", "#667085", "#e4e7ec"
BEFORE, AFTER = "#b9c0cc", "#0072b2"  # a light grey and Okabe and Ito's blue differ in lightness too


def draw(run: RunFiles, result: RunResult) -> bytes:
    """The picture as PNG bytes, 1760 x 720 pixels. Panels without data say so."""
    figure = Figure(figsize=(11, 4.5), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        1, 2, width_ratios=[1.75, 1], left=0.062, right=0.985, top=0.77, bottom=0.125, wspace=0.16
    )
    _reward(figure.add_subplot(grid[0]), run)
    _held_out(figure.add_subplot(grid[1]), result)
    figure.text(0.012, 0.945, _title(result), fontsize=15, fontweight="bold", color=INK, va="center")
    figure.text(0.012, 0.882, _subtitle(run, result), fontsize=10, color=MUTED, va="center")
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": "MMR1"})
    return content.getvalue()


def _title(result: RunResult) -> str:
    task = (result.task or "run").capitalize()
    gain = result.heldout.gain("sampled")
    if gain is None:
        return f"{task}: {result.steps} steps"
    metric = result.heldout.metric
    before, after = (measured(metric, side["sampled"]) for side in (result.heldout.before, result.heldout.after))
    return f"{task}: held-out {words_for(metric)} {before} → {after}, sampled"


def _subtitle(run: RunFiles, result: RunResult) -> str:
    model = str(run.config.get("model") or "").rstrip("/").rsplit("/", 1)[-1]
    parts = [model, f"{result.steps} optimizer steps", f"{result.weight_updates} weight updates"]
    if result.seconds is not None:
        parts.append(minutes(result.seconds))
    if result.seed is not None:
        parts.append(f"seed {result.seed}")
    return "   ·   ".join(part for part in parts if part)


def _reward(axes: Axes, run: RunFiles) -> None:
    rows = [
        (m["step"], mean, number(m, "reward_std") or 0.0)
        for m in run.metrics
        if (mean := number(m, "reward_mean")) is not None
    ]
    style(axes, "Training reward", "optimizer step")
    if not rows:
        _nothing(axes, "no step has been taken")
        return
    steps, means, spreads = zip(*rows, strict=True)
    low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    axes.fill_between(
        steps, low, high, color=AFTER, alpha=0.13, linewidth=0, label="± 1 standard deviation of the samples"
    )
    axes.plot(steps, means, color=AFTER, alpha=0.45, linewidth=1.1, label="mean of the step")
    axes.plot(steps, smooth(means), color=AFTER, linewidth=2.6, solid_capstyle="round", label="smoothed")
    if len(rows) == 1:
        axes.plot(steps, means, marker="o", color=AFTER)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=MUTED, handlelength=1.6)


def _held_out(axes: Axes, result: RunResult) -> None:
    heldout = result.heldout
    style(axes, f"Held-out {words_for(heldout.metric)}")
    if all(value is None for side in (heldout.before, heldout.after) for value in side.values()):
        _nothing(axes, "not evaluated")
        return
    sides = (("before", heldout.before, BEFORE, -0.2), ("after", heldout.after, AFTER, 0.2))
    top = 0.0
    for name, side, colour, shift in sides:
        for place, mode in enumerate(MODES):
            value = side[mode]
            if value is None:
                continue
            low, high = _interval(result, name, mode, value)
            label = name if place == 0 else None
            axes.bar(place + shift, value, width=0.37, color=colour, label=label, zorder=2)
            # A bootstrap's ends may pass the value itself by a rounding.
            below, above = max(0.0, value - low), max(0.0, high - value)
            axes.errorbar(place + shift, value, [[below], [above]], color=INK, linewidth=1.1, capsize=3, zorder=3)
            axes.annotate(
                measured(heldout.metric, value), (place + shift, high), (0, 5), textcoords="offset points",
                ha="center", fontsize=10.5, fontweight="bold" if name == "after" else "normal", color=INK,
            )  # fmt: skip
            top = max(top, high)
    _label_modes(axes, heldout)
    if is_share(heldout.metric):
        axes.set_ylim(0, min(1.12, top * 1.3) or 1.12)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        bottom, end = axes.get_ylim()
        axes.set_ylim(bottom, end + 0.25 * (end - bottom))  # room for the numbers and the legend
    axes.legend(
        loc="upper left", frameon=False, fontsize=9, labelcolor=MUTED, handlelength=1.0, ncols=2, columnspacing=1.2
    )


def _interval(result: RunResult, side: str, mode: str, value: float) -> tuple[float, float]:
    """As it was measured; a line of an older release has a share alone, whose interval follows from its size."""
    heldout, task = result.heldout, result.tasks.get(result.task or "")
    measured = (task.before if side == "before" else task.after).get(mode, {}) if task else {}
    low, high = (measured.get(heldout.metric, {}).get(end) for end in ("low", "high"))
    if low is not None and high is not None:
        return low, high
    return interval(value, heldout.n) if heldout.n and heldout.metric == "accuracy" else (value, value)


def _label_modes(axes: Axes, heldout: Heldout) -> None:
    labels = []
    for mode in MODES:
        gain = heldout.gain(mode)
        labels.append(mode if gain is None else f"{mode}\n{change(heldout.metric, gain)}")
    axes.set_xticks(range(len(MODES)), labels)
    axes.set_xlim(-0.55, len(MODES) - 0.45)
    axes.tick_params(axis="x", length=0, labelsize=10, labelcolor=INK)
    axes.grid(visible=False, axis="x")
    if heldout.n:
        axes.set_title(f"{heldout.n:,} problems, bars: 95 %", loc="right", fontsize=9, color=MUTED, pad=9)


def style(axes: Axes, title: str, x_label: str = "") -> None:
    """What every panel of ours looks like."""
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK, pad=9)
    axes.set_xlabel(x_label, fontsize=9.5, color=MUTED)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _nothing(axes: Axes, reason: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=11)
