"""The report of a folder that `mmr1 eval` has left: its metrics, its answers, and another evaluation beside it.

An evaluation takes no step and keeps no ledger, so there is no curve and no picture of a reward; its figures stand in
results.json already. Which answers are shown is the affair of `answers`, what the page looks like that of `page`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console
from rich.table import Table

from mmr1.errors import ConfigurationError
from mmr1.evaluation import Answer, Difference, Metric, TaskResult, compare
from mmr1.evaluation.tables import print_results
from mmr1.report.compare import differing
from mmr1.report.run_files import EVALUATION, Folder, Record, config_of, document_of, is_evaluation, number

RESULTS, SAMPLES = "results.json", "samples.jsonl"


@dataclass(frozen=True)
class EvaluationFolder(Folder):
    """What an evaluation's folder holds. `facts` are results.json's but for the metrics, None: it has not ended.

    `identity` is what the evaluation compares itself with before it goes on: its problems and its options.
    """

    identity: Record
    facts: Record | None
    results: list[TaskResult]

    @property
    def samples_file(self) -> Path:
        return self.folder / SAMPLES

    @property
    def model(self) -> str:
        return str((self.facts or {}).get("model") or self.config.get("model") or "")


@dataclass(frozen=True)
class EvaluationComparison:
    """Two evaluations of the same problems. `options` are (name, this one's, the other's)."""

    this_name: str
    other_name: str
    differences: list[Difference]
    options: list[tuple[str, str, str]]


def read_evaluation(folder: Path) -> EvaluationFolder:
    """Read everything but the answers.

    Raises:
        ConfigurationError: it is not the folder of an evaluation.
    """
    if not is_evaluation(folder):
        raise ConfigurationError(f"{folder} is not an evaluation's folder (no {EVALUATION}); give one of `mmr1 eval`")
    problems = [f"{name} is missing" for name in ("config.yaml", SAMPLES) if not (folder / name).exists()]
    identity, document = (document_of(folder / name, problems) for name in (EVALUATION, RESULTS))
    if not (folder / RESULTS).exists():
        problems.append(f"{RESULTS} is missing: the evaluation has not ended, and the same `mmr1 eval` command goes on")
    facts = {name: value for name, value in document.items() if name != "tasks"} if _is_mapping(document) else None
    tasks = document.get("tasks") if _is_mapping(document) else None
    return EvaluationFolder(
        folder=folder,
        config=config_of(folder / "config.yaml", problems),
        problems=problems,
        identity=identity if _is_mapping(identity) else {},
        facts=facts,
        results=[_result(task) for task in tasks if _is_mapping(task)] if isinstance(tasks, list) else [],
    )


def compare_evaluations(this: EvaluationFolder, other: EvaluationFolder) -> EvaluationComparison:
    """The differences of all metrics, with paired intervals.

    Raises:
        ConfigurationError: they asked different problems, or one has not ended or is damaged.
    """
    for one in (this, other):
        if one.facts is None:
            raise ConfigurationError(
                f"{one.folder} has no whole {RESULTS}: the evaluation has not ended; the same `mmr1 eval` goes on"
            )
    asked = [one.identity.get("eval_file") for one in (this, other)]
    if asked[0] is None or asked[0] != asked[1]:
        raise ConfigurationError(
            f"{this.folder} and {other.folder} are of different problems (eval_file {asked[0]} and {asked[1]}); "
            "compare evaluations of one eval_file with one eval_sample_size"
        )
    seed = (this.facts or {}).get("seed")
    try:
        found = compare(_answers(this), _answers(other), seed=seed if isinstance(seed, int) and seed >= 0 else 0)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{SAMPLES} of {this.folder} and {other.folder} do not hold all answers to the same problems ({error}); "
            "evaluate again with another --eval_dir"
        ) from None
    names = (_name(this), _name(other))
    if names[0] == names[1]:
        names = (str(this.folder), str(other.folder))
    return EvaluationComparison(names[0], names[1], found, differing(_told(this), _told(other)))


def print_evaluation(
    evaluation: EvaluationFolder, comparison: EvaluationComparison | None, console: Console | None = None
) -> None:
    """The tables that `mmr1 eval` printed, and of two evaluations their differences."""
    console = console or Console()
    print_results(evaluation.results, console)
    for problem in evaluation.problems:
        console.print(problem, soft_wrap=True, highlight=False, markup=False)
    if comparison is None:
        return
    table = Table(title="Differences, paired 95 % intervals", title_justify="left")
    for column in ("task", "metric", "this", "other", "difference", "95 % interval"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for row in comparison.differences:
        low, high = row.difference.low, row.difference.high
        table.add_row(
            row.task,
            row.metric,
            *(_shown(metric.value) for metric in (row.this, row.other)),
            _signed(row.difference.value),
            "-" if low is None or high is None else f"{_signed(low)} to {_signed(high)}",
            style="bold" if row.is_headline else "",
        )
    console.print(table)


def told(evaluation: EvaluationFolder) -> dict[str, str]:
    """Everything that says which evaluation this is, by name."""
    return {name: str(value) for name, value in _told(evaluation).items() if value not in (None, "")}


def _told(evaluation: EvaluationFolder) -> dict[str, Any]:
    """The model is there twice: where it lies, and which weights it had."""
    identity = {("weights" if name == "model" else name): value for name, value in evaluation.identity.items()}
    identity.pop("eval_file", None)  # its digest; where it lies is among the facts
    return {**(evaluation.facts or {}), **identity}


def _name(evaluation: EvaluationFolder) -> str:
    return evaluation.folder.resolve().name


def _answers(evaluation: EvaluationFolder) -> list[Answer]:
    with evaluation.samples_file.open("rb") as file:
        return [Answer.from_json(json.loads(line)) for line in file]


def _result(record: Record) -> TaskResult:
    """A task of results.json; what is no number there is a dash."""
    given = record.get("metrics")
    metrics = {str(name): one for name, one in given.items() if _is_mapping(one)} if _is_mapping(given) else {}
    return TaskResult(
        task=str(record.get("task") or ""),
        headline=str(record.get("headline") or ""),
        num_problems=int(number(record, "num_problems") or 0),
        num_samples=int(number(record, "num_samples") or 0),
        metrics={
            name: Metric(number(one, "value"), number(one, "low"), number(one, "high")) for name, one in metrics.items()
        },
    )


def _is_mapping(value: Any) -> TypeGuard[Record]:
    return isinstance(value, dict)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


__all__ = [
    "EvaluationComparison",
    "EvaluationFolder",
    "compare_evaluations",
    "print_evaluation",
    "read_evaluation",
    "told",
]
