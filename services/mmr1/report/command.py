"""`mmr1 report RUN_DIR`: reads the folder once and writes the three files. Knows the order of things, no format."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmr1.errors import CONFIGURATION_ERROR, ConfigurationError
from mmr1.lifecycle import CommandParser
from mmr1.report import fine_tuning
from mmr1.report.page import fine_tuning_page, page
from mmr1.report.picture import draw
from mmr1.report.result import RunResult, summarise
from mmr1.report.run_files import RunFiles, read_run
from mmr1.report.samples import choose
from mmr1.report.table import print_table


def build(run_dir: Path) -> RunResult:
    """Write result.json, reward.png and report.html into `run_dir` and return what result.json holds.

    Whatever the run has not written yet is left out, and said to be missing, in all three.

    Raises:
        ConfigurationError: `run_dir` is not the folder of a run, or cannot be written.
    """
    return _build(read_run(Path(run_dir)))


def _build(run: RunFiles) -> RunResult:
    result = summarise(run)
    with _writing(run.folder):
        _replace(run.folder / "result.json", result.to_json().encode())
        _replace(run.folder / "reward.png", draw(run, result))
        _replace(run.folder / "report.html", page(run, result, choose(run)).encode())
    return result


def _build_fine_tuning(run: RunFiles) -> dict[str, Any]:
    """The same for what `mmr1 sft` has left, without a picture of rewards."""
    result = fine_tuning.summarise(run)
    with _writing(run.folder):
        _replace(run.folder / "result.json", fine_tuning.as_json(result).encode())
        _replace(run.folder / "report.html", fine_tuning_page(run, result).encode())
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the process's exit code."""
    parser = CommandParser(
        prog="mmr1 report",
        description="Write result.json, reward.png and report.html of a run, and print its table. Of RUN_DIR/sft, "
        "which mmr1 sft leaves, result.json and report.html with the curves of its loss.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run's folder, for example runs/demo")
    try:
        arguments = parser.parse_args(argv)
        run = read_run(arguments.run_dir)
        if run.is_fine_tuning:
            fine_tuning.print_summary(_build_fine_tuning(run))
        else:
            print_table(_build(run))
    except ConfigurationError as error:
        print(f"mmr1: error: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR
    print(f"{arguments.run_dir / 'report.html'}")
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
