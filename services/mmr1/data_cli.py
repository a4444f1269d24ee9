"""`mmr1 data`: make a dataset (`digits`), convert one (`convert`) or check one (`validate`).

This file reads a command line and prints; the work is done in mmr1.digits, mmr1.convert and mmr1.reading.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from mmr1.config.objective import OWN_TASK
from mmr1.convert import command as convert
from mmr1.credentials import REWARD_KEY_VARIABLE
from mmr1.digits.files import write_problems
from mmr1.digits.scans import load_scans
from mmr1.digits.tasks import TASKS
from mmr1.errors import CONFIGURATION_ERROR, ConfigurationError
from mmr1.reading.files import dataset_folder
from mmr1.reading.problem_rows import BadRow, Keys
from mmr1.reading.validation import validate
from mmr1.remote_images import local_or_remote
from mmr1.reward_program import OwnJudge
from mmr1.row_checks import ServerJudge
from mmr1_reward_server.client import RewardClient, RewardServerError

_TASK = "counting"  # of rows that name none, unless --task says otherwise
_ANSWER_SECONDS = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mmr1 data ...` with these arguments (default: the process's own) and return the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        command = {"digits": _digits, "validate": _validate, "convert": convert.run}[arguments.command]
        return command(arguments)
    except ConfigurationError as error:
        print(f"mmr1: error: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{self.prog}: {message}; `{self.prog} --help` lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mmr1 data", description="make or check a dataset")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    digits = commands.add_parser("digits", help="compose problems from scikit-learn's handwritten digits")
    digits.add_argument("--task", choices=list(TASKS), default="counting")
    digits.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    digits.add_argument("--num-train", type=_count, default=4000, metavar="N")
    digits.add_argument("--num-eval", type=_count, default=640, metavar="N")
    digits.add_argument("--seed", type=_count, default=0, metavar="N")
    digits.add_argument("--canvas", type=int, metavar="PIXELS", help="width; default: the task's own, 84, 112 or 140")
    convert.add_parser(
        commands.add_parser("convert", help="make a dataset of one in another format: coco, refcoco ...")
    )
    check = commands.add_parser("validate", help="list every bad row of a dataset, and what the good ones hold")
    check.add_argument("file", type=Path, help="JSON, JSON Lines, Parquet, Arrow, or a Hugging Face folder")
    check.add_argument(
        "--image-root",
        "--image_root",
        type=local_or_remote,
        metavar="DIR",
        help="or URL; default: --image-dir, else the file's folder",
    )
    check.add_argument("--image-dir", "--image_dir", type=Path, metavar="DIR", help="where relative image paths begin")
    for key, default in (("problem", "problem"), ("answer", "solution"), ("image", "image")):
        check.add_argument(f"--{key}-key", f"--{key}_key", default=default, metavar="KEY")
    check.add_argument("--task", help=f"of rows that have no `task` of their own; default: {_TASK}")
    check.add_argument(
        "--rewards",
        nargs="+",
        default=[OWN_TASK],
        metavar="NAME",
        help="by which a row must be scorable, as in a run; `task`, the default, is the row's own",
    )
    check.add_argument(
        "--reward-params", "--reward_params", type=_mapping, default={}, metavar="JSON", help="of these, as in a run"
    )
    check.add_argument("--url", help="of a reward server that runs, for rewards that this environment's has not")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _mapping(text: str) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(params, dict) for params in found.values()):
        raise argparse.ArgumentTypeError('give a JSON object, {"NAME": {"PARAM": VALUE}}')
    return found


def _digits(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    task = TASKS[arguments.task]
    try:
        write_problems(
            arguments.out,
            task,
            load_scans(),
            num_train=arguments.num_train,
            num_eval=arguments.num_eval,
            seed=arguments.seed,
            side=task.canvas if arguments.canvas is None else arguments.canvas,
        )
    except OSError as error:
        raise ConfigurationError(
            f"{arguments.out} cannot be written ({error.strerror}); choose another --out"
        ) from None
    print(
        f"{arguments.out}: {arguments.num_train} training and {arguments.num_eval} held-out problems "
        f"in {time.monotonic() - started:.1f} s"
    )
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    """Bad rows to standard error, as they are found."""
    path, folder = arguments.file, arguments.image_dir
    root = arguments.image_root or folder or dataset_folder(path)
    keys = Keys(arguments.problem_key, arguments.answer_key, arguments.image_key, arguments.task or _TASK)
    rewards = [entry.partition("=")[0] for entry in arguments.rewards]
    with OwnJudge() as own:
        judge = _server(arguments.url, own) if arguments.url else own
        try:
            num_bad, statistics = validate(
                path,
                root=root,
                keys=keys,
                folder=folder,
                say=_say,
                judge=judge,
                rewards=rewards,
                params=arguments.reward_params,
            )
        except RewardServerError as error:
            raise ConfigurationError(f"--url {arguments.url}: {error}; give the address of one that runs") from None
    total = num_bad + statistics.num_rows
    if total and arguments.task is None and not statistics.names_tasks:
        print(
            f"mmr1: warning: no row of {path} has a task: all were taken to be {_TASK}; give --task for another",
            file=sys.stderr,
        )
    if num_bad:
        raise ConfigurationError(f"{path}: {num_bad} of {total} rows are bad; repair or remove them")
    if not total:
        raise ConfigurationError(f"{path} holds no problem; give a file or folder with rows")
    print(f"{path}: {total} problems, all good\n{statistics}")
    return 0


def _server(url: str, own: OwnJudge) -> ServerJudge:
    """With the key of the environment, as `mmr1 rewards try --url`."""
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--url {url}: give the address of a reward server, http://HOST:PORT")
    return ServerJudge(partial(RewardClient, url, _ANSWER_SECONDS, api_key=os.environ.get(REWARD_KEY_VARIABLE)), own)


def _say(bad: BadRow) -> None:
    print(bad, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
