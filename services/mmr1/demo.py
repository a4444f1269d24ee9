"""`mmr1 demo counting`: data if it is missing, the whole stack with a live panel, then the report.

Knows the order of things; the options are in examples/counting.yaml, where a reader can change them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmr1 import data_cli, live, report
from mmr1.config import RunConfig, load_config
from mmr1.errors import ConfigurationError
from mmr1.lifecycle import CommandParser
from mmr1.local.run_lock import LOCK_NAME, run_lock
from mmr1.local.stack import run_stack

TASKS = ("counting",)
MARK_NAME = ".demo"  # in the run folder: this command made it and may replace it


def main(argv: Sequence[str]) -> int:
    """Returns the exit code of the run, or raises ConfigurationError."""
    parser = CommandParser(
        prog="mmr1 demo",
        description="Post-train the small model of examples/ on this machine and show what it has learned.",
        allow_abbrev=False,
        epilog="Further --option value pairs override examples/TASK.yaml; `mmr1 up --help` lists them.",
    )
    parser.add_argument("task", choices=TASKS)
    arguments, options = parser.parse_known_args(argv)
    config = load_config(_example(arguments.task), options)
    console = Console()
    _make_data(config, arguments.task, console)
    _start_anew(config.run_dir, console)

    async def show() -> None:
        await live.follow(config.run_dir, console, f"mmr1 demo {arguments.task}")

    console.print(f"logs: {config.run_dir / 'logs'}", style="dim", soft_wrap=True)
    code = run_stack(config, console, quiet=True, companion=show)
    if code == 0:
        report.print_table(report.build(config.run_dir))
        console.print(f"{config.run_dir / 'report.html'}", soft_wrap=True)
    return code


def _example(task: str) -> Path:
    path = Path("examples") / f"{task}.yaml"
    if not path.exists():
        raise ConfigurationError(f"there is no {path} here; run the demo in the repository's root folder")
    return path


def _make_data(config: RunConfig, task: str, console: Console) -> None:
    if config.train_file.exists():
        return
    console.print(f"drawing the problems into {config.train_file.parent}", soft_wrap=True)
    code = data_cli.main(["digits", "--task", task, "--out", str(config.train_file.parent)])
    if code != 0:
        raise ConfigurationError(f"the problems could not be drawn into {config.train_file.parent}; see above")


def _start_anew(run_dir: Path, console: Console) -> None:
    """A demonstration begins at the beginning: an earlier one in the same folder goes. Refuses any other folder."""
    if run_dir.exists() and {path.name for path in run_dir.iterdir()} - {LOCK_NAME}:
        if not (run_dir / MARK_NAME).exists():
            raise ConfigurationError(f"run_dir {run_dir} holds something that is no demo; give another --run_dir")
        with run_lock(run_dir):
            console.print(f"replacing the earlier demo in {run_dir}", style="dim", soft_wrap=True)
            shutil.rmtree(run_dir)
    with run_lock(run_dir):
        (run_dir / MARK_NAME).touch()
