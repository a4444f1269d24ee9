"""Rows of a dataset as a sequence of problems that is not in memory.

This file knows how rows are set down (mmr1.reading.row_store), and nothing of formats or runs.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import overload

from mmr1.reading.files import DataFile
from mmr1.reading.image_sizes import ImageSizes
from mmr1.reading.problem_rows import BadRow
from mmr1.reading.row_store import RowStore
from mmr1.records import Problem


class Problems(Sequence[Problem]):
    """Some rows of a dataset, in an order; a slice is the same of fewer. `position` is the row's place in the dataset.

    Nothing but the order is in memory: a problem is read when it is asked for.
    """

    def __init__(
        self, store: RowStore, files: Sequence[DataFile], kept: Sequence[int], sizes: ImageSizes | None = None
    ) -> None:
        self._store = store
        self._files = files
        self._kept = kept
        self.sizes = ImageSizes() if sizes is None else sizes  # by position, of images that have been opened

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Problems: ...
    def __getitem__(self, index: int | slice) -> Problem | Problems:
        if isinstance(index, slice):
            return Problems(self._store, self._files, self._kept[index], self.sizes)
        position = self._kept[index]
        return _problem(position, self._store.content(position))

    def __iter__(self) -> Iterator[Problem]:
        for position, content in zip(self._kept, self._contents(), strict=True):
            yield _problem(position, content)

    @property
    def num_rows(self) -> int:
        """Of the dataset, of which these may be some: positions are below it."""
        return len(self._store)

    def bad_row(self, index: int, reason: str) -> BadRow:
        """What is wrong with this problem's row, with the row's place in its file."""
        file, number = self._store.place(self._kept[index])
        return BadRow(self._files[file], number, reason)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of texts, solutions, image paths and tasks, in this order."""
        return _digest(self._contents())

    @cached_property
    def tasks(self) -> dict[str, int]:
        """How many problems there are of each task."""
        names = self._store.tasks
        return {names[number]: count for number, count in Counter(self._task_numbers()).items()}

    def indices_by_task(self) -> dict[str, Sequence[int]]:
        """Which problems are of which task: four bytes for each."""
        names, found = self._store.tasks, {task: array("I") for task in self.tasks}
        for index, number in enumerate(self._task_numbers()):
            found[names[number]].append(index)
        return dict(found)

    def drawn(self, size: int | None, seed: int) -> Problems:
        """`size` of them in the order that they have, in each task's share; None, or as many as there are: all.

        A task has at least one where there are as many places as tasks. The same seed draws the same; for more places
        what it draws for fewer, as far as the shares let it.
        """
        if size is None or size >= len(self):
            return self
        chosen, places = list[int](), _places(self.tasks, size)
        for task, indices in self.indices_by_task().items():
            shuffled = list(indices)
            random.Random(f"{seed} {task}").shuffle(shuffled)
            chosen += shuffled[: places[task]]
        return Problems(self._store, self._files, array("I", (self._kept[index] for index in sorted(chosen))))

    def spread(self, count: int | None) -> Sequence[int]:
        """`count` indices, as evenly over all problems as can be; None: every index."""
        if count is None or count >= len(self):
            return range(len(self))
        return [index * len(self) // count for index in range(count)]

    def _contents(self) -> Iterator[bytes]:
        if isinstance(self._kept, range) and self._kept.step == 1:
            return self._store.contents(self._kept.start, self._kept.stop)
        return (self._store.content(position) for position in self._kept)

    def _task_numbers(self) -> Iterator[int]:
        if isinstance(self._kept, range) and self._kept.step == 1:
            return self._store.task_numbers(self._kept.start, self._kept.stop)
        return (next(self._store.task_numbers(position, position + 1)) for position in self._kept)


def tasks_of(problems: Sequence[Problem]) -> dict[str, int]:
    """How many of them are of each task."""
    return problems.tasks if isinstance(problems, Problems) else Counter(problem.task for problem in problems)


def indices_by_task(problems: Sequence[Problem]) -> dict[str, Sequence[int]]:
    """Which problems are of which task."""
    if isinstance(problems, Problems):
        return problems.indices_by_task()
    tasks = [problem.task for problem in problems]
    return {task: [index for index, other in enumerate(tasks) if other == task] for task in dict.fromkeys(tasks)}


def digest_of(problems: Sequence[Problem]) -> str:
    """SHA-256, in hex, of texts, solutions, image paths and tasks, in this order. The images' bytes are not read."""
    if isinstance(problems, Problems):
        return problems.digest
    rows = ([problem.problem, problem.solution, problem.images, problem.task] for problem in problems)
    return _digest(json.dumps(row).encode() for row in rows)


def _places(tasks: Mapping[str, int], size: int) -> dict[str, int]:
    """How many of `size` places each task gets, by its number of problems: each goes to the one that is most short."""
    shares = {task: size * count / sum(tasks.values()) for task, count in tasks.items()}
    given = dict.fromkeys(tasks, int(size >= len(tasks)))
    for _ in range(size - sum(given.values())):
        given[max(shares, key=lambda task: shares[task] - given[task])] += 1
    return given


def _problem(position: int, content: bytes) -> Problem:
    text, solution, images, task = json.loads(content)
    return Problem(position, text, solution, tuple(images), task)


def _digest(rows: Iterator[bytes]) -> str:
    """Of the JSON text of a list of all rows, of which there is one at a time."""
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        digest.update(b", " + row if number else row)
    digest.update(b"]")
    return digest.hexdigest()


__all__ = ["Problems", "digest_of", "indices_by_task", "tasks_of"]
