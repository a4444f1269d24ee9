"""`mmr1 replay DUMP`: run a dumped optimizer update again, in one process, and compare the loss of each group.

It is the trainer's own code, with the dump's parameters in place of a checkpoint's: what the dumping rank computed, and
no other rank's part. Nothing is written and nothing is kept. torch is imported only when the dump has been found.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mmr1.config import RunConfig, load_config
from mmr1.errors import ConfigurationError
from mmr1.lifecycle import CommandParser, run_command
from mmr1.telemetry import configure_logging
from mmr1_learner.train import set_environment

if TYPE_CHECKING:
    from mmr1_learner.dumps import Dump, Found

CLOSE = 1e-4  # relative: what another device or another number of threads may differ by


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when every loss is what the run found, NaN included, and 1 when one is not.

    Raises:
        ConfigurationError: the folder is no dump, or what it needs (model, images) is not there.
    """
    parser = CommandParser(
        prog="mmr1 replay",
        description="Run a dumped optimizer update again and compare the loss of each group.",
        epilog="Further --option value pairs override the dump's configuration: --model, --image_root ...",
        allow_abbrev=False,
    )
    parser.add_argument("dump", type=Path, help="a folder of RUN_DIR/dumps")
    arguments, options = parser.parse_known_args(argv)
    if not (arguments.dump / "config.yaml").exists():
        raise ConfigurationError(f"{arguments.dump} is no dump of a step; give a folder of RUN_DIR/dumps")
    _refuse_fine_tuning(arguments.dump)
    config = load_config(arguments.dump / "config.yaml", options, environment=False)
    set_environment(config)
    os.environ.setdefault("MASTER_PORT", "0")  # of a process alone: any free one
    configure_logging("replay")
    from mmr1_learner.dumps import read_dump
    from mmr1_learner.replayed import check_images, replay

    dump = read_dump(arguments.dump)
    check_images(config, dump.plan)
    found, gradients = replay(config, dump)
    return report(Console(), config, dump, found, gradients)


def _refuse_fine_tuning(dump: Path) -> None:
    """It has examples and no groups, and needs no replay: its steps follow from the checkpoint."""
    try:
        kind = json.loads((dump / "dump.json").read_text()).get("kind")
    except (OSError, ValueError, AttributeError):
        return  # what is wrong with it is said when it is read
    if kind == "fine_tuning":
        raise ConfigurationError(
            f"{dump} is of a step of `mmr1 sft`; `mmr1 sft {dump / 'config.yaml'}` goes from the newest checkpoint to "
            "that step again"
        )


def report(console: Console, config: RunConfig, dump: Dump, found: Found, gradients: dict[str, float]) -> int:
    """Print the table and the verdict; returns the exit code."""
    table = Table()
    for column in ("group", "task", "samples", "mean reward", "loss in the run", "loss again", ""):
        table.add_column(column, justify="right" if "loss" in column or column == "samples" else "left")
    if gradients:
        table.add_column("its gradient", justify="right")
    marks = set()
    for group in dump.plan.groups:
        name = str(group.prompt.id)
        before, after = dump.found.losses.get(name), found.losses.get(name)
        # Where a loss was at fault, older versions stopped at its forward: what came after it was not computed then.
        stopped = before is None and dump.found.reason.startswith("loss")
        mark = SAME if stopped else _compare(before, after)
        marks.add(mark)
        rewards = [r.score.reward for r in group.rollouts if r.score is not None and r.score.reward is not None]
        mean = f"{sum(rewards) / len(rewards):.3f}" if rewards else "-"
        cells = [name, group.prompt.task, str(len(group.rollouts)), mean, _show(before), _show(after), mark]
        style = "red" if after is not None and not math.isfinite(after) else None
        table.add_row(*cells, *([_show(gradients.get(name))] if gradients else []), style=style)
    console.print(f"step {dump.plan.step + 1}, update {dump.update.index}, rank {dump.rank} of {dump.world_size}")
    console.print(f"set aside: {dump.found.reason}; again: {found.reason}", soft_wrap=True, markup=False)
    console.print(table)
    marks.add(_compare(dump.found.loss, found.loss))
    console.print(f"loss {_show(dump.found.loss)} in the run, {_show(found.loss)} again", highlight=False)
    verdict = next(mark for mark in (DIFFERENT, SIMILAR, SAME) if mark in marks)
    console.print(f"[bold]{_VERDICTS[verdict]}[/]")
    return 1 if verdict == DIFFERENT else 0


SAME, SIMILAR, DIFFERENT = "same", "close", "different"
_VERDICTS = {
    SAME: "the same, bit for bit",
    SIMILAR: f"the same to {CLOSE:g}, as another device or number of threads gives it",
    DIFFERENT: "not what the run found: other software, another machine, or a dump whose parameters are not its own",
}


def _compare(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return SAME if before is after else DIFFERENT
    if before == after or (math.isnan(before) and math.isnan(after)):
        return SAME
    return SIMILAR if math.isclose(before, after, rel_tol=CLOSE, abs_tol=1e-7) else DIFFERENT


def _show(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.9g}"


if __name__ == "__main__":
    sys.exit(run_command(main))
