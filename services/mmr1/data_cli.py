"""`mmr1 data`: make a dataset (`digits`) or check one (`validate`).

This file reads a command line and prints; the work is done in mmr1.digits and mmr1.dataset.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mmr1.dataset import BadRow, Keys, Reading, bad_images, read_problems
from mmr1.digits.counting import write_counting
from mmr1.digits.scans import load_scans
from mmr1.errors import CONFIGURATION_ERROR, ConfigurationError


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mmr1 data ...` with these arguments (default: the process's own) and return the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        command = {"digits": _digits, "validate": _validate}[arguments.command]
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
    digits.add_argument("--task", choices=["counting"], default="counting")
    digits.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    digits.add_argument("--num-train", type=_count, default=4000, metavar="N")
    digits.add_argument("--num-eval", type=_count, default=640, metavar="N")
    digits.add_argument("--seed", type=_count, default=0, metavar="N")
    digits.add_argument("--canvas", type=int, default=112, metavar="PIXELS", help="side, a multiple of 28")
    validate = commands.add_parser("validate", help="list every bad row of a dataset, and what the good ones hold")
    validate.add_argument("file", type=Path, help="JSON array or JSON Lines")
    validate.add_argument("--image-root", type=Path, metavar="DIR", help="default: the file's folder")
    for key, default in (("problem", "problem"), ("answer", "solution"), ("image", "image")):
        validate.add_argument(f"--{key}-key", default=default, metavar="KEY")
    validate.add_argument("--task", default="counting", help="of rows that have no `task` of their own")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _digits(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    try:
        write_counting(
            arguments.out,
            load_scans(),
            num_train=arguments.num_train,
            num_eval=arguments.num_eval,
            seed=arguments.seed,
            side=arguments.canvas,
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
    root = arguments.image_root or arguments.file.parent
    keys = Keys(arguments.problem_key, arguments.answer_key, arguments.image_key, arguments.task)
    reading = read_problems(arguments.file, root=root, keys=keys)
    unusable = bad_images(arguments.file, reading.problems, reading.lines, root=root, image_key=keys.image)
    bad_rows = sorted([*reading.bad_rows, *unusable], key=_line)
    for bad in bad_rows:
        print(bad, file=sys.stderr)
    total = len(reading.problems) + len(reading.bad_rows)
    if bad_rows:
        raise ConfigurationError(f"{arguments.file}: {len(bad_rows)} of {total} rows are bad; repair or remove them")
    if not total:
        raise ConfigurationError(f"{arguments.file} holds no problem; give a JSON array or JSON Lines of objects")
    print(f"{arguments.file}: {total} problems, all good\n{_statistics(reading)}")
    return 0


def _line(bad: BadRow) -> int:
    return bad.line


def _statistics(reading: Reading) -> str:
    problems = reading.problems
    images = [image for problem in problems for image in problem.images]
    lengths = [len(problem.problem) for problem in problems]
    solutions = Counter(str(problem.solution) for problem in problems)
    common = ", ".join(f"{text[:30]} ({count})" for text, count in solutions.most_common(8))
    tasks = ", ".join(f"{task} ({count})" for task, count in Counter(p.task for p in problems).most_common())
    return (
        f"  tasks      {tasks}\n"
        f"  images     {len(images)} named, {len(set(images))} different\n"
        f"  problems   {min(lengths)}-{max(lengths)} characters, {len({p.problem for p in problems})} different\n"
        f"  solutions  {len(solutions)} different; most common: {common}"
    )


if __name__ == "__main__":
    sys.exit(main())
