"""The `mmr1` command: finds the sub-command and calls it.

Sub-commands are imported only when called, so `mmr1 --help` is quick, and those of the other distributions are found
through the entry-point group `mmr1.commands` (name -> function(argv) -> exit code): this package imports no learner.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from mmr1.errors import ConfigurationError
from mmr1.lifecycle import run_command

Command = Callable[[list[str]], int]

BUILT_IN = {
    "up": "run the whole stack on this machine: mmr1 up CONFIG [--option value ...]",
    "train": "the same by the name that others give it: mmr1 train CONFIG [--option value ...]",
    "demo": "the demonstrations: mmr1 demo counting|ocr|grounding|detection",
    "plan": "how to share N GPUs between learner and rollout servers: mmr1 plan --model PATH --gpus N",
    "doctor": "check this machine and say what is missing",
    "data": "make or validate a dataset: mmr1 data digits, mmr1 data validate FILE",
    "rewards": "the reward server's tasks, and how one response is scored: mmr1 rewards [try --task NAME ...]",
    "templates": "the prompt templates, with an example of each: mmr1 templates [NAME ...]",
    "ledger": "a run's accounts in Redis: mmr1 ledger RUN",
    "probe": "is a service ready? For health checks of containers: mmr1 probe rollout HOST:PORT",
    "report": "result.json, reward.png and report.html of a run or an evaluation: mmr1 report RUN_DIR",
}
ELSEWHERE = {
    "data": "mmr1.data_cli",
    "plan": "mmr1.capacity.command",
    "ledger": "mmr1.ledger_cli",
    "probe": "mmr1.probe_cli",
    "report": "mmr1.report",
    "doctor": "mmr1.doctor",
    "demo": "mmr1.demo",
    "rewards": "mmr1.rewards_cli",
    "templates": "mmr1.templates_cli",
}
# Of another distribution of ours: what `mmr1 --help` says of them when they are installed.
LEARNERS = {
    "eval": "the metrics of a model on held-out problems: mmr1 eval CONFIG [--option value ...]",
    "sft": "supervised fine-tuning on a dataset's solutions: mmr1 sft CONFIG [--option value ...]",
    "replay": "run a dumped optimizer step again: mmr1 replay DUMP",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 something the user must change, 130 Ctrl-C, 141 nobody reads on."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from mmr1 import __version__

        print(__version__)
        return 0
    return _command(arguments[0])(arguments[1:])


def _command(name: str) -> Command:
    if name in ("up", "train"):
        return lambda argv: _up(name, argv)
    if name in ELSEWHERE:
        command: Command = importlib.import_module(ELSEWHERE[name]).main
        return command
    found = {entry.name: entry for entry in entry_points(group="mmr1.commands")}
    if name not in found:
        raise ConfigurationError(f"unknown command {name!r}; there are {', '.join([*BUILT_IN, *sorted(found)])}")
    command = found[name].load()
    return command


def _up(name: str, argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        from mmr1.config.loading import option_help

        print(
            f"usage: mmr1 {name} CONFIG [--option value ...]\n\n"
            "Options, with their defaults; MMR1_<OPTION> sets one too:\n"
        )
        print(option_help())
        return 0
    config_path = None if argv[0].startswith("--") else Path(argv[0])
    if config_path is None:
        raise ConfigurationError(
            f"mmr1 {name} needs a configuration file first: mmr1 {name} CONFIG [--option value ...]"
        )
    from mmr1.config import load_config

    config = load_config(config_path, argv[1:])  # before the rest is imported: a misspelt option shows at once
    from rich.console import Console

    from mmr1.local.stack import run_stack

    return run_stack(config, Console())


def _help() -> str:
    commands = dict(BUILT_IN)
    for entry in sorted(entry_points(group="mmr1.commands"), key=lambda found: found.name):
        commands[entry.name] = LEARNERS.get(entry.name) or (f"from {entry.dist.name}" if entry.dist else "")
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {text}".rstrip() for name, text in commands.items()]
    return "\n".join(["usage: mmr1 COMMAND ...", "", *lines, "", "mmr1 COMMAND --help says more."])


if __name__ == "__main__":
    sys.exit(main())
