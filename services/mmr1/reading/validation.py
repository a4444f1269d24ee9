"""Looks at every row and every image of a dataset, names all that is wrong, and counts what is good.

Memory is bounded: rows come and go, images are decoded and let go of. Nothing is written; embedded images are decoded
where they are. This file prints nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path

from mmr1.coordinates import wrong_boxes
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.reading.problem_rows import BadRow, Keys, Row, read_rows
from mmr1.reading.statistics import Statistics
from mmr1.remote_images import RemoteRoot

_AT_ONCE = 256
_IMAGES_REMEMBERED = 2**14

Sizes = list[tuple[int, int]]


def validate(
    path: Path, *, root: Path | RemoteRoot, keys: Keys, folder: Path | None, say: Callable[[BadRow], None]
) -> tuple[int, Statistics]:
    """Arguments as of `read_rows`; `say` is called with each bad row, in order.

    Returns:
        How many rows are bad, and the statistics of the others.

    Raises:
        ConfigurationError: a file itself cannot be read.
        UnreachableImageError: where images are kept does not answer.
    """
    rows = (_with_boxes(row, keys) for row in read_rows(path, root=root, keys=keys, folder=folder))
    num_bad, statistics = 0, Statistics()
    for row, found in _looked_at(rows, ImageStore(root)):
        if isinstance(row, Row) and not isinstance(found, str):
            statistics.add_row(row.problem, row.solution, row.task, len(row.images))
            for image, size in zip(row.images, found, strict=True):
                statistics.add_image(image, size)
            continue
        num_bad += 1
        say(row if isinstance(row, BadRow) else BadRow(row.file, row.number, f"key {keys.image!r}: {found}"))
    return num_bad, statistics


def _with_boxes(row: Row | BadRow, keys: Keys) -> Row | BadRow:
    """A good row is a bad one if its boxes are wrong."""
    if isinstance(row, BadRow):
        return row
    wrong = wrong_boxes(row.problem, row.solution, row.task, (keys.problem, keys.answer))
    return BadRow(row.file, row.number, wrong) if wrong else row


def _looked_at(rows: Iterator[Row | BadRow], store: ImageStore) -> Iterator[tuple[Row | BadRow, Sizes | str]]:
    """Each row with its images' sizes, or with what is wrong with one of them."""

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
                return size
            found.append(size)
        return found

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as threads:  # decoders release the GIL
        while some := list(islice(rows, _AT_ONCE)):
            yield from zip(some, threads.map(sizes, some), strict=True)


__all__ = ["validate"]
