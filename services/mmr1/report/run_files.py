"""Reads a run's folder: what is there, as plain records, and what is missing or damaged, by name.

A run may have been cut at any byte, so a last line without its end is ignored, and no file is required except one that
shows that this is a run at all. Completions stay on disk (there may be millions) and are streamed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmr1.config.sft_options import FOLDER
from mmr1.errors import ConfigurationError
from mmr1.reading.files import dataset_folder
from mmr1.remote_images import RemoteRoot, local_or_remote

Record = dict[str, Any]
FILES = ("config.yaml", "metrics.jsonl", "evaluations.jsonl", "completions.jsonl", "ledger.json", "parity.json")
STARTED = "run.json"  # written before the first of the others but config.yaml, which an evaluation has too
EVALUATION = "evaluation.json"  # in the folder that `mmr1 eval` leaves
FINE_TUNING_FILES = ("config.yaml", "metrics.jsonl")  # of what `mmr1 sft` leaves; it evaluates only if asked to


@dataclass(frozen=True)
class Folder:
    """What every folder that is reported of has. `problems` names what is missing or damaged, a sentence each."""

    folder: Path
    config: Record
    problems: list[str]

    @property
    def image_root(self) -> Path | RemoteRoot | None:
        """Where its images are: the run's image_root or image_dir, or its train_file's folder."""
        if root := self.config.get("image_root") or self.config.get("image_dir"):
            return local_or_remote(str(root))
        train_file = self.config.get("train_file")
        return dataset_folder(Path(train_file)) if train_file else None


@dataclass(frozen=True)
class RunFiles(Folder):
    """What a run's folder holds.

    `metrics` has one record per optimizer step, in order; where a resumed run did a step again, the later one.
    `all_metrics` has every line. `num_weight_updates` is the learner's own count; the update that brings the rollout
    servers to its weights before the first step is in it.
    """

    metrics: list[Record]
    all_metrics: list[Record]
    evaluations: list[Record]
    ledger: Record
    parity: list[Record]
    num_weight_updates: int | None
    is_fine_tuning: bool = False  # what `mmr1 sft` has left, and no run of reinforcement

    def completions(self) -> Iterator[Record]:
        """The lines of completions.jsonl, in order, one at a time."""
        path = self.folder / "completions.jsonl"
        if path.exists():
            yield from lines_of(path, [])


def is_evaluation(folder: Path) -> bool:
    """Whether `mmr1 eval` has left it. A run that shares its folder with an evaluation counts as the run."""
    return (folder / EVALUATION).exists() and not (folder / "metrics.jsonl").exists()


def read_run(folder: Path) -> RunFiles:
    """Read everything but the completions.

    Raises:
        ConfigurationError: `folder` does not exist, holds none of a run's files, or is an evaluation's.
    """
    _require_run(folder)
    damaged: list[str] = []
    lines = _all_lines(folder / "metrics.jsonl", damaged)
    is_fine_tuning = _is_fine_tuning(folder, lines)
    expected = FINE_TUNING_FILES if is_fine_tuning else FILES
    problems = [f"{name} is missing" for name in expected if not (folder / name).exists()] + damaged
    all_metrics = [record for record in lines if isinstance(record.get("step"), int)]
    by_step = {record["step"]: record for record in all_metrics}
    ledger = document_of(folder / "ledger.json", problems)
    parity = document_of(folder / "parity.json", problems)
    updates = document_of(folder / "weight_updates.json", problems)
    return RunFiles(
        folder=folder,
        config=config_of(folder / "config.yaml", problems),
        metrics=[by_step[step] for step in sorted(by_step)],
        all_metrics=all_metrics,
        evaluations=_all_lines(folder / "evaluations.jsonl", problems),
        ledger=ledger if isinstance(ledger, dict) else {},
        parity=[record for record in parity if isinstance(record, dict)] if isinstance(parity, list) else [],
        num_weight_updates=updates["count"] if isinstance(updates, dict) and "count" in updates else None,
        problems=problems,
        is_fine_tuning=is_fine_tuning,
    )


def _require_run(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigurationError(
            f"run folder {folder} does not exist; give the run_dir of a run, for example runs/demo"
        )
    if is_evaluation(folder):
        raise ConfigurationError(f"{folder} is what `mmr1 eval` has left, and no run; compare it with an evaluation")
    signs = [STARTED, *(name for name in FILES if name != "config.yaml")]
    begun = folder.resolve().name == FOLDER and (folder / "config.yaml").exists()  # `mmr1 sft` before its first step
    if begun or any((folder / name).exists() for name in signs):
        return
    inside = folder / FOLDER
    if inside.is_dir():
        remedy = f"give {inside}, which `mmr1 sft` has left"
    else:
        remedy = "give a run_dir whose run has begun, or the folder of an evaluation"
    raise ConfigurationError(f"{folder} is not a run's folder (none of {', '.join(signs)} is there); {remedy}")


def _is_fine_tuning(folder: Path, lines: list[Record]) -> bool:
    """By the name of its folder while no step has been taken, else by its lines: a run's have a reward, or a null."""
    if not lines:
        return folder.resolve().name == FOLDER
    return all("reward_mean" not in line for line in lines) and any("loss" in line for line in lines)


def number(record: Record, key: str) -> float | None:
    """`record[key]` as a finite float, or None: a missing value and a NaN are drawn the same way, as a gap."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def config_of(path: Path, problems: list[str]) -> Record:
    if not path.exists():
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError:
        problems.append(f"{path.name} is not valid YAML")
        return {}
    return document if isinstance(document, dict) else {}


def document_of(path: Path, problems: list[str]) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        problems.append(f"{path.name} is not complete")
        return None


def _all_lines(path: Path, problems: list[str]) -> list[Record]:
    return list(lines_of(path, problems)) if path.exists() else []


def lines_of(path: Path, problems: list[str]) -> Iterator[Record]:
    """JSON Lines. A line without its newline may be half a record and is skipped unless it parses."""
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                if line.endswith(b"\n") and line.strip():
                    problems.append(f"{path.name}, line {row} is not JSON and was skipped")
                continue
            if isinstance(record, dict):
                yield record
