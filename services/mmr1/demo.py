"""`mmr1 demo TASK`: data if it is missing, the whole stack with a live panel, then the report.

Knows the order of things; the options are in examples/TASK.yaml, where a reader can change them.
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
from mmr1.local.run_lock import LOCK_NAME
from mmr1.local.stack import run_stack

TASKS = ("counting", "ocr", "grounding", "detection")
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
    _refuse_foreign(config.run_dir)
    _make_data(config, arguments.task, console)

    async def show() -> None:
        await live.follow(config.run_dir, console, f"mmr1 demo {arguments.task}")

    console.print(f"logs: {config.run_dir / 'logs'}", style="dim", soft_wrap=True)
    code = run_stack(config, console, quiet=True, companion=show, clear=lambda: _start_anew(config.run_dir, console))
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


def _refuse_foreign(run_dir: Path) -> None:
    """Whatever is in the folder will go, so it must be an earlier demo's."""
    if _contents(run_dir) and not (run_dir / MARK_NAME).exists():
        raise ConfigurationError(f"run_dir {run_dir} holds something that is no demo; give another --run_dir")


def _start_anew(run_dir: Path, console: Console) -> None:
    """A demonstration begins at the beginning. The run's lock is held, and stays."""
    _refuse_foreign(run_dir)
    earlier = _contents(run_dir)
    if earlier:
        console.print(f"replacing the earlier demo in {run_dir}", style="dim", soft_wrap=True)
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run_dir / MARK_NAME).touch()


def _contents(run_dir: Path) -> list[Path]:
    return [path for path in run_dir.iterdir() if path.name != LOCK_NAME] if run_dir.exists() else []
