"""`mmr1 report RUN_DIR`: reads the folder once and writes the three files. Knows the order of things, no format."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmr1.config import load_config
from mmr1.errors import CONFIGURATION_ERROR, ConfigurationError
from mmr1.lifecycle import CommandParser
from mmr1.report import fine_tuning
from mmr1.report.answers import choose_answers
from mmr1.report.compare import compare
from mmr1.report.evaluation import (
    EvaluationComparison,
    EvaluationFolder,
    compare_evaluations,
    print_evaluation,
    read_evaluation,
)
from mmr1.report.page import evaluation_page, fine_tuning_page, page
from mmr1.report.picture import draw
from mmr1.report.result import RunResult, summarise
from mmr1.report.run_files import RunFiles, is_evaluation, read_run
from mmr1.report.samples import choose
from mmr1.report.table import print_table


def build(run_dir: Path, compare_with: Path | None = None) -> RunResult:
    """Write result.json, reward.png and report.html into `run_dir` and return what result.json holds.

    Whatever the run has not written yet is left out, and said to be missing, in all three. `compare_with` is another
    run's folder: report.html then shows both runs' curves, held-out metrics and differing options.

    Raises:
        ConfigurationError: one of the two is not the folder of a run, or `run_dir` cannot be written.
    """
    return _build(read_run(Path(run_dir)), _other(compare_with))


def _other(folder: Path | None) -> RunFiles | None:
    """The run to compare with. Raises ConfigurationError."""
    if folder is None:
        return None
    other = read_run(folder)
    if other.is_fine_tuning:
        raise ConfigurationError(f"{folder} is what `mmr1 sft` has left; --compare takes a run of reinforcement")
    return other


def _build(run: RunFiles, other: RunFiles | None) -> RunResult:
    result = summarise(run)
    comparison = compare(run, other) if other else None
    with _writing(run.folder):
        _replace(run.folder / "result.json", result.to_json().encode())
        _replace(run.folder / "reward.png", draw(run, result))
        _replace(run.folder / "report.html", page(run, result, choose(run), comparison).encode())
    return result


def _build_fine_tuning(run: RunFiles) -> dict[str, Any]:
    """The same for what `mmr1 sft` has left, without a picture of rewards."""
    result = fine_tuning.summarise(run)
    with _writing(run.folder):
        _replace(run.folder / "result.json", fine_tuning.as_json(result).encode())
        _replace(run.folder / "report.html", fine_tuning_page(run, result).encode())
    return result


def build_evaluation(folder: Path, compare_with: Path | None = None) -> EvaluationComparison | None:
    """Write report.html into the folder that `mmr1 eval` has left; with another such folder the differences too.

    Raises:
        ConfigurationError: one of the two is no evaluation's, they asked different problems, or `folder` cannot be
            written.
    """
    return _build_evaluation(read_evaluation(folder), compare_with)


def _build_evaluation(evaluation: EvaluationFolder, compare_with: Path | None) -> EvaluationComparison | None:
    comparison = compare_evaluations(evaluation, read_evaluation(compare_with)) if compare_with else None
    samples = choose_answers(evaluation.samples_file, evaluation.image_root)
    with _writing(evaluation.folder):
        _replace(evaluation.folder / "report.html", evaluation_page(evaluation, samples, comparison).encode())
    return comparison


def _report_evaluation(folder: Path, compare_with: Path | None) -> None:
    evaluation = read_evaluation(folder)
    print_evaluation(evaluation, _build_evaluation(evaluation, compare_with))
    print(f"{folder / 'report.html'}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the process's exit code."""
    parser = CommandParser(
        prog="mmr1 report",
        description="Write result.json, reward.png and report.html of a run, and print its table. Of RUN_DIR/sft, "
        "which mmr1 sft leaves, result.json and report.html with the curves of its loss. Of RUN_DIR/eval, which "
        "mmr1 eval leaves, report.html with its metrics and answers.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("run_dir", type=Path, nargs="?", metavar="RUN_DIR", help="the run's folder, as runs/demo")
    which.add_argument("--config", type=Path, metavar="FILE", help="or the run's YAML file, which names that folder")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OTHER_RUN",
        help="another run's folder, or that of another evaluation of the same problems: both are then side by side",
    )
    try:
        arguments = parser.parse_args(argv)
        folder = load_config(arguments.config).run_dir if arguments.config else arguments.run_dir
        if is_evaluation(folder):
            _report_evaluation(folder, arguments.compare)
            return 0
        run = read_run(folder)
        other = _other(arguments.compare)
        if run.is_fine_tuning and other:
            raise ConfigurationError(f"{run.folder} is what `mmr1 sft` has left; --compare is of runs of reinforcement")
        if run.is_fine_tuning:
            fine_tuning.print_summary(_build_fine_tuning(run))
        else:
            print_table(_build(run, other))
    except ConfigurationError as error:
        print(f"mmr1: error: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR
    print(f"{run.folder / 'report.html'}")
    return 0


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"cannot write into {folder}: {error.strerror}; give the run a writable folder"
        ) from None


def _replace(path: Path, content: bytes) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)
