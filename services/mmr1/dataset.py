"""Problems from a JSON file, and the order in which a run takes them.

A file is a JSON array of objects or JSON Lines. Every wrong row is named by file, line and key with a remedy; the line
is the real one in a JSON array too. This file knows nothing of templates, tokens or rewards.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, ImageStore
from mmr1.json_rows import Malformed, json_rows
from mmr1.records import Problem

if TYPE_CHECKING:
    from mmr1.config import RunConfig


@dataclass(frozen=True, slots=True)
class Keys:
    """Under which keys a row holds what; `task` is for rows without a `task` of their own."""

    problem: str = "problem"
    answer: str = "solution"
    image: str = "image"
    task: str = "counting"


@dataclass(frozen=True, slots=True)
class BadRow:
    """What is wrong with one row, with the remedy; `line` counts from 1."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Reading:
    """All of a file: the good rows, the line of each, and the bad ones in file order."""

    problems: list[Problem]
    lines: list[int]
    bad_rows: list[BadRow]


def load_problems(
    path: Path,
    *,
    root: Path,
    problem_key: str = "problem",
    answer_key: str = "solution",
    image_key: str = "image",
    task: str = "counting",
    folder: Path | None = None,
    sample_size: int | None = None,
    seed: int = 0,
    check_images: bool = True,
) -> list[Problem]:
    """Read a dataset, or stop at the first thing that is wrong with it.

    Args:
        path: JSON array or JSON Lines.
        root: no image may lie outside it; `Problem.images` are relative to it.
        folder: where the rows' relative image paths begin; default: root.
        sample_size: keep the first N after a shuffle seeded with `seed`; None keeps all, in file order.
        check_images: decode every image of what is kept (on threads), so that none fails later.

    Returns:
        The problems; `position` is the row's place in the file, from 0.

    Raises:
        ConfigurationError: one line that names file, line, key and remedy, and how many other rows are wrong.
    """
    reading = read_problems(path, root=root, keys=Keys(problem_key, answer_key, image_key, task), folder=folder)
    _stop_at_first(reading.bad_rows)
    if not reading.problems:
        raise ConfigurationError(f"{path} holds no problem; give a JSON array or JSON Lines of objects")
    kept = list(range(len(reading.problems)))
    if sample_size is not None:
        random.Random(seed).shuffle(kept)
        kept = kept[:sample_size]
    problems = [reading.problems[index] for index in kept]
    if check_images:
        lines = [reading.lines[index] for index in kept]
        _stop_at_first(bad_images(path, problems, lines, root=root, image_key=image_key))
    return problems


def train_problems(config: RunConfig, *, check_images: bool = True) -> list[Problem]:
    """The run's training problems, images checked. Raises ConfigurationError as `load_problems` does."""
    return _load(config, config.train_file, sample_size=config.train_sample_size, check_images=check_images)


def eval_problems(config: RunConfig, *, check_images: bool = True) -> list[Problem]:
    """The first `eval_sample_size` held-out problems in file order; none without an `eval_file`.

    `Problem.images` are relative to the run's one image root, whichever folder the file lies in.

    Raises:
        ConfigurationError: as `load_problems` does, or the file's images are outside the run's image root.
    """
    if config.eval_file is None:
        return []
    root, folder = Path(os.path.realpath(config.resolved_image_root)), config.image_root or config.eval_file.parent
    if not Path(os.path.realpath(folder)).is_relative_to(root):
        raise ConfigurationError(
            f"eval_file {config.eval_file} lies outside the image root {root}; set image_root to a folder that holds "
            "the images of both files (the paths in them are then relative to it)"
        )
    return _load(config, config.eval_file, folder=folder, check_images=check_images)[: config.eval_sample_size]


def with_steps(config: RunConfig) -> RunConfig:
    """The run with `num_steps` known: with `num_epochs` they follow from the number of training problems.

    Raises:
        ConfigurationError: the training file is wrong, as `load_problems` says; no image is opened.
    """
    if config.num_epochs is None:
        return config
    problems = train_problems(config, check_images=False)
    num_steps = math.ceil(config.num_epochs * len(problems) / config.prompts_per_step)
    return config.model_copy(update={"num_steps": num_steps, "num_epochs": None})


def _load(
    config: RunConfig,
    path: Path,
    *,
    folder: Path | None = None,
    sample_size: int | None = None,
    check_images: bool = True,
) -> list[Problem]:
    return load_problems(
        path,
        root=config.resolved_image_root,
        problem_key=config.problem_key,
        answer_key=config.answer_key,
        image_key=config.image_key,
        task=config.task,
        folder=folder,
        sample_size=sample_size,
        seed=config.seed,
        check_images=check_images,
    )


class DataOrder:
    """Which problem each position of a run's data order takes: every epoch is another shuffle of all problems.

    A position is mapped by a keyed permutation (a Feistel network, walked until it lands inside the range), so any
    position is found at once, without a stored shuffle, and the same seed gives the same order for ever.
    """

    ROUNDS = 4

    def __init__(self, num_problems: int, seed: int) -> None:
        if num_problems < 1:
            raise ValueError("an order needs at least one problem")
        self.num_problems = num_problems
        self.seed = seed
        self._half_bits = max(1, math.ceil((num_problems - 1).bit_length() / 2))

    def epoch(self, position: int) -> int:
        """How often all problems were taken before `position`."""
        return position // self.num_problems

    def index(self, position: int) -> int:
        """The index into the list of problems, in [0, num_problems), for a position from 0 on."""
        epoch, value = divmod(position, self.num_problems)
        value = self._permute(epoch, value)
        while value >= self.num_problems:
            value = self._permute(epoch, value)
        return value

    def _permute(self, epoch: int, value: int) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = value >> self._half_bits, value & mask
        for turn in range(self.ROUNDS):
            key = f"{self.seed}/{epoch}/{turn}/{right}".encode()
            digest = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())
            left, right = right, left ^ (digest & mask)
        return left << self._half_bits | right


def read_problems(path: Path, *, root: Path, keys: Keys, folder: Path | None = None) -> Reading:
    """Every good and every bad row of a file; opens no image.

    Raises:
        ConfigurationError: the file itself cannot be read.
    """
    store = ImageStore(root)
    start = Path(os.path.abspath(folder)) if folder else store.root
    reading = Reading([], [], [])
    for line, row in json_rows(path):
        try:
            if isinstance(row, Malformed):
                raise _RowError(row.reason)
            problem = _problem(row, keys, position=len(reading.problems) + len(reading.bad_rows))
            images = tuple(store.relative(start / image) for image in problem.images)
            reading.problems.append(replace(problem, images=images))
            reading.lines.append(line)
        except (_RowError, ImageError) as error:
            reason = f"key {keys.image!r}: {error}" if isinstance(error, ImageError) else str(error)
            reading.bad_rows.append(BadRow(path, line, reason))
    return reading


def bad_images(path: Path, problems: list[Problem], lines: list[int], *, root: Path, image_key: str) -> list[BadRow]:
    """Decode the images of `problems` (row i is at `lines[i]` of `path`) and return the rows with an unusable one."""
    store = ImageStore(root)

    def reason(image: str) -> str | None:
        try:
            store.check(image)
        except ImageError as error:
            return str(error)
        return None

    names = list(dict.fromkeys(image for problem in problems for image in problem.images))
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as threads:  # decoders release the GIL
        reasons = dict(zip(names, threads.map(reason, names), strict=True))
    rows = []
    for problem, line in zip(problems, lines, strict=True):
        wrong = next((reasons[image] for image in problem.images if reasons[image]), None)
        if wrong:
            rows.append(BadRow(path, line, f"key {image_key!r}: {wrong}; fix the file or remove the row"))
    return rows


class _RowError(Exception):
    pass


def _stop_at_first(bad_rows: list[BadRow]) -> None:
    if bad_rows:
        first, others = bad_rows[0], len(bad_rows) - 1
        more = f" (and {others} more bad rows: `mmr1 data validate {first.path}` lists them)" if others else ""
        raise ConfigurationError(f"{first}{more}")


def _problem(row: Any, keys: Keys, position: int) -> Problem:
    if not isinstance(row, dict):
        raise _RowError(f"a row must be an object with {keys.problem!r}, {keys.answer!r} and {keys.image!r}")
    text = _value(row, keys.problem, "problem_key")
    if not isinstance(text, str) or not text.strip():
        raise _RowError(f"key {keys.problem!r} must be a text that is not empty")
    solution = _value(row, keys.answer, "answer_key")
    if solution is None or solution == "":
        raise _RowError(f"key {keys.answer!r} is empty; give the right answer or remove the row")
    images = _value(row, keys.image, "image_key")
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(i, str) and i.strip() for i in images):
        raise _RowError(f"key {keys.image!r} must be an image path or a list of them")
    task = row.get("task", keys.task)
    if not isinstance(task, str) or not task.strip():
        raise _RowError("key 'task' must be a task's name; leave it out for the run's own task")
    return Problem(position, text, solution, tuple(images), task)


def _value(row: dict[str, Any], key: str, option: str) -> Any:
    if key in row:
        return row[key]
    near = difflib.get_close_matches(key, row, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]!r}? set {option}" if near else f"the row has {sorted(row)}; set {option}"
    raise _RowError(f"key {key!r} is missing; {remedy}")


__all__ = [
    "BadRow",
    "DataOrder",
    "Keys",
    "Reading",
    "bad_images",
    "eval_problems",
    "load_problems",
    "read_problems",
    "train_problems",
    "with_steps",
]
