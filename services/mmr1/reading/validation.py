"""Looks at every row and every image of a dataset, names all that is wrong, and counts what is good.

Each row is shown to the judges of its rewards, with an empty response and its image's size: one that no answer to it
could be scored by is bad.

Memory is bounded: rows come and go, images are decoded and let go of. Nothing is written; embedded images are decoded
where they are. This file prints nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmr1.config.objective import OWN_TASK
from mmr1.coordinates import COORDINATE_TASKS, wrong_boxes
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.reading.embedded import EmbeddedImages
from mmr1.reading.problem_rows import BadRow, Keys, Row, read_rows
from mmr1.reading.statistics import Statistics
from mmr1.remote_images import RemoteRoot
from mmr1.row_checks import RowJudge, item_of, said_of

_AT_ONCE = 256
_IMAGES_REMEMBERED = 2**14

Sizes = list[tuple[int, int]]


def validate(
    path: Path,
    *,
    root: Path | RemoteRoot,
    keys: Keys,
    folder: Path | None,
    say: Callable[[BadRow], None],
    judge: RowJudge,
    rewards: Sequence[str] = (OWN_TASK,),
    params: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> tuple[int, Statistics]:
    """Arguments as of `read_rows`; `say` is called with each bad row, in order.

    Args:
        rewards: names of those that score a row; `task` is its own.
        params: what each of these is called with.

    Returns:
        How many rows are bad, and the statistics of the others.

    Raises:
        ConfigurationError: a file itself cannot be read, or a run could not put embedded images below the root.
        UnreachableImageError: where images are kept does not answer.
    """
    num_bad, statistics, embedded = 0, Statistics(), EmbeddedImages(root)

    def rows() -> Iterator[Row | BadRow]:
        for row in read_rows(path, root=root, keys=keys, folder=folder):
            if isinstance(row, Row):
                statistics.names_tasks |= row.names_task
                if any(isinstance(image, bytes) for image in row.images):
                    embedded.require_folder()
            yield _with_boxes(row, keys, rewards)

    for row, found in _judged(_looked_at(rows(), ImageStore(root), keys), keys, judge, rewards, params):
        if isinstance(row, Row) and not isinstance(found, str):
            statistics.add_row(row.problem, row.solution, row.task, len(row.images))
            for image, size in zip(row.images, found, strict=True):
                statistics.add_image(image, size)
            continue
        num_bad += 1
        say(row if isinstance(row, BadRow) else BadRow(row.file, row.number, str(found)))
    return num_bad, statistics


def _with_boxes(row: Row | BadRow, keys: Keys, rewards: Sequence[str]) -> Row | BadRow:
    """A good row is a bad one if its boxes are wrong."""
    if isinstance(row, BadRow):
        return row
    tasks = COORDINATE_TASKS if COORDINATE_TASKS & {*_judges(row, rewards)} else ()
    wrong = wrong_boxes(row.problem, row.solution, row.task, (keys.problem, keys.answer), tasks)
    return BadRow(row.file, row.number, wrong) if wrong else row


def _judges(row: Row, rewards: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(row.task if reward == OWN_TASK else reward for reward in rewards))


def _judged(
    looked_at: Iterator[tuple[Row | BadRow, Sizes | str]],
    keys: Keys,
    judge: RowJudge,
    rewards: Sequence[str],
    params: Mapping[str, dict[str, Any]],
) -> Iterator[tuple[Row | BadRow, Sizes | str]]:
    """The same, with what a judge refuses in place of the sizes of a row that was good so far."""
    while some := list(islice(looked_at, _AT_ONCE)):
        asked = [
            (place, item_of(task, row.solution, params.get(task, {}), found[0]))
            for place, (row, found) in enumerate(some)
            if isinstance(row, Row) and not isinstance(found, str)
            for task in _judges(row, rewards)
        ]
        refused: dict[int, str] = {}
        for (place, _), refusal in zip(asked, judge.refusals([item for _, item in asked]), strict=True):
            if refusal is not None:
                refused.setdefault(place, said_of(refusal, keys.answer))
        yield from ((row, refused.get(place, found)) for place, (row, found) in enumerate(some))


def _looked_at(
    rows: Iterator[Row | BadRow], store: ImageStore, keys: Keys
) -> Iterator[tuple[Row | BadRow, Sizes | str]]:
    """Each row with its images' sizes, or with what is wrong with one of them, by its key."""

    @lru_cache(maxsize=_IMAGES_REMEMBERED)
    def look(path: str) -> tuple[int, int] | str:
        try:
            return store.check(path)
        except UnreachableImageError:
            raise  # the row may be good
        except ImageError as error:
            return f"{error}; fix the file or remove the row"

    def sizes(row: Row | BadRow) -> Sizes | str:
        found: Sizes = []
        for image in row.images if isinstance(row, Row) else ():
            size: tuple[int, int] | str
            try:
                size = look(image) if isinstance(image, str) else store.check_content("(embedded)", image)
            except UnreachableImageError:
                raise
            except ImageError as error:
                size = f"{error}; remove the row"
            if isinstance(size, str):
                return f"key {keys.image!r}: {size}"
            found.append(size)
        return found

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as threads:  # decoders release the GIL
        while some := list(islice(rows, _AT_ONCE)):
            yield from zip(some, threads.map(sizes, some), strict=True)


__all__ = ["validate"]
