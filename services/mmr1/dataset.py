"""A run's problems: read through once, checked, and from then on found by index without being in memory.

Every wrong row is named by file, line or row, and key, with a remedy. How the formats are read stands in mmr1.reading.
This file knows nothing of templates, tokens or rewards.
"""

from __future__ import annotations

import math
import os
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmr1.data_order import DataOrder, Order, WeightedOrder
from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.reading.embedded import EmbeddedImages
from mmr1.reading.files import DataFile, data_files, dataset_folder
from mmr1.reading.problem_rows import BadRow, Keys, Row, read_rows
from mmr1.reading.problems import Problems, indices_by_task, tasks_of
from mmr1.reading.row_store import RowStore
from mmr1.records import Problem
from mmr1.remote_images import RemoteRoot

if TYPE_CHECKING:
    from mmr1.config import RunConfig

_AT_ONCE = 1024  # rows whose images are under way
_IMAGES_REMEMBERED = 2**14  # problems about one image mostly stand together


def load_problems(
    path: Path,
    *,
    root: Path | RemoteRoot,
    problem_key: str = "problem",
    answer_key: str = "solution",
    image_key: str = "image",
    task: str = "counting",
    folder: Path | None = None,
    sample_size: int | None = None,
    seed: int = 0,
    check_images: bool = True,
    image_checks: int | None = None,
) -> Problems:
    """Read a dataset through, or say what is wrong with it. Embedded images are written below the root.

    Args:
        path: a JSON array, JSON Lines, Parquet or Arrow file, a Hugging Face folder, or a split in one.
        root: no image may lie outside it; `Problem.images` are relative to it.
        folder: where the rows' relative image paths begin; default: root.
        sample_size: keep the first N after a shuffle seeded with `seed`; None keeps all, in file order.
        check_images: decode images of what is kept (on threads), so that none of them fails later.
        image_checks: of this many rows, spread over all; None: of every row.

    Raises:
        ConfigurationError: one line that names file, line or row, key and remedy, and how many other rows are wrong.
        UnreachableImageError: where images are kept does not answer.
    """
    keys = Keys(problem_key, answer_key, image_key, task)
    changed = tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in (file.path.stat() for file in data_files(path)))
    problems = _opened(
        path,
        path.absolute(),
        changed,
        root if isinstance(root, RemoteRoot) else root.absolute(),
        keys,
        folder,
        sample_size,
        seed,
    )
    if check_images:
        indices = problems.spread(image_checks)
        stop_at_first(path, bad_images(problems, indices, root=root, image_key=image_key))
    return problems


@lru_cache(maxsize=2)  # a process asks for its two datasets several times, and reading a million rows takes a while
def _opened(
    path: Path,
    _where: Path,
    _changed: object,
    root: Path | RemoteRoot,
    keys: Keys,
    folder: Path | None,
    size: int | None,
    seed: int,
) -> Problems:
    store, files = RowStore(), list[DataFile]()
    rows = read_rows(path, root=root, keys=keys, folder=folder)
    stop_at_first(path, _set_down(rows, store, files, root, keys))
    if not len(store):
        raise ConfigurationError(f"{path} holds no problem; give a file or folder with rows")
    store.seal()
    kept: Sequence[int] = range(len(store))
    if size is not None:
        shuffled = array("I", kept)
        random.Random(seed).shuffle(shuffled)
        kept = shuffled[:size]
    return Problems(store, files, kept)


def _set_down(
    rows: Iterator[Row | BadRow], store: RowStore, files: list[DataFile], root: Path | RemoteRoot, keys: Keys
) -> Iterator[BadRow]:
    """Good rows to the store, their files to `files`; gives the others."""
    embedded = EmbeddedImages(root)
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        if not files or files[-1] != row.file:
            files.append(row.file)
        try:
            images = [embedded.name(image) if isinstance(image, bytes) else image for image in row.images]
        except ImageError as error:
            yield BadRow(row.file, row.number, f"key {keys.image!r}: {error}")
            continue
        content = [row.problem, row.solution, images, row.task]
        store.append(content, task=row.task, file=len(files) - 1, number=row.number)


def stop_at_first(path: Path, bad_rows: Iterable[BadRow], options: str = "") -> None:
    """Raises ConfigurationError for the first, if there is one, with the number of the others.

    `options`: with which `mmr1 data validate` lists them.
    """
    first: BadRow | None = None
    others = -1
    for bad in bad_rows:
        first, others = first or bad, others + 1
    if first:
        more = f" (and {others} more bad rows: `mmr1 data validate {path}{options}` lists them)" if others else ""
        raise ConfigurationError(f"{first}{more}")


def train_problems(config: RunConfig, *, check_images: bool = True) -> Problems:
    """The run's training problems, images checked. Raises ConfigurationError as `load_problems` does."""
    return _load(config, config.train_file, sample_size=config.train_sample_size, check_images=check_images)


def eval_problems(config: RunConfig, *, check_images: bool = True) -> Problems:
    """The held-out problems in file order, or a draw of `eval_sample_size` of them; none without an `eval_file`.

    `Problem.images` are relative to the run's one image root, whichever folder the file lies in.

    Raises:
        ConfigurationError: as `load_problems` does, or the file's images are outside the run's image root.
    """
    if config.eval_file is None:
        return Problems(RowStore(), [], range(0))
    return _load(config, config.eval_file, check_images=check_images).drawn(config.eval_sample_size, config.seed)


def _load(config: RunConfig, path: Path, *, sample_size: int | None = None, check_images: bool = True) -> Problems:
    folder = config.image_dir or (None if config.image_root else dataset_folder(path))
    return load_problems(
        path,
        root=config.resolved_image_root,
        problem_key=config.problem_key,
        answer_key=config.answer_key,
        image_key=config.image_key,
        task=config.task,
        folder=None if folder == config.resolved_image_root else folder,
        sample_size=sample_size,
        seed=config.seed,
        check_images=check_images,
        image_checks=config.image_checks,
    )


def with_steps(config: RunConfig) -> RunConfig:
    """The run with `num_steps` known: with `num_epochs` they follow from the number of training problems.

    Raises:
        ConfigurationError: the training file is wrong, as `load_problems` says; no image is opened.
    """
    if config.num_epochs is None:
        return config
    num_problems = num_to_train(train_problems(config, check_images=False), config)
    num_steps = math.ceil(config.num_epochs * num_problems / config.prompts_per_step)
    return config.model_copy(update={"num_steps": num_steps, "num_epochs": None})


def num_to_train(problems: Sequence[Problem], config: RunConfig) -> int:
    """How many of them the run's order ever takes: none of a task whose weight is 0."""
    weights = config.task_weights
    return sum(count for task, count in tasks_of(problems).items() if not weights or weights.get(task))


def order_of(problems: Sequence[Problem], config: RunConfig) -> Order:
    """The run's data order: a shuffle of all problems each epoch, or tasks by `task_weights`."""
    if not config.task_weights:
        return DataOrder(len(problems), config.seed)
    return WeightedOrder(indices_by_task(problems), config.task_weights, config.seed)


def bad_images(
    problems: Problems, indices: Sequence[int], *, root: Path | RemoteRoot, image_key: str
) -> Iterator[BadRow]:
    """Decode the images of these problems, each once, and name the rows with an unusable one.

    `problems.sizes` has the size of each row's first image afterwards.
    """
    store = ImageStore(root)
    problems.sizes.room_for(problems.num_rows)

    @lru_cache(maxsize=_IMAGES_REMEMBERED)
    def look(image: str) -> tuple[int, int] | str:
        try:
            return store.check(image)
        except UnreachableImageError:
            raise  # the row may be good
        except ImageError as error:
            return str(error)

    def wrong(index: int) -> str | None:
        problem = problems[index]
        for place, image in enumerate(problem.images):
            found = look(image)
            if isinstance(found, str):
                return found
            if place == 0:
                problems.sizes.remember(problem.position, found)
        return None

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as threads:  # decoders release the GIL
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            for index, found in zip(some, threads.map(wrong, some), strict=True):
                if found:
                    yield problems.bad_row(index, f"key {image_key!r}: {found}; fix the file or remove the row")


__all__ = [
    "BadRow",
    "DataOrder",
    "Keys",
    "Problems",
    "bad_images",
    "eval_problems",
    "load_problems",
    "num_to_train",
    "order_of",
    "stop_at_first",
    "train_problems",
    "with_steps",
]
