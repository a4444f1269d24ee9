"""Writes the rows of a conversion as a JSON array, and puts the images beside it, so that the folder is a dataset.

Images of a local folder become links to the same bytes (copies on another file system): nothing is stored twice, and
no link leads out of the folder, which an image root would not allow. The array appears whole or not at all.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mmr1.convert.annotations import Row
from mmr1.errors import ConfigurationError

IMAGES = "images"


def write_rows(path: Path, rows: Iterable[Row], images: Path | None) -> tuple[int, int]:
    """Write `rows` to `path`, and their images from the folder `images` below `path`'s; None: they stay where they are.

    Returns:
        The number of rows, and of different images.

    Raises:
        OSError: something cannot be written.
        ConfigurationError: below `path` there is another image of the same name, or a row cannot be written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    num_rows, placed = 0, set()
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("[")
            for row in rows:
                if images is not None:
                    name = f"{IMAGES}/{Path(row['image']).as_posix()}"
                    if row["image"] not in placed:
                        _place(images / row["image"], path.parent / name)
                    placed.add(row["image"])
                    row = {**row, "image": name}
                else:
                    placed.add(row["image"])
                file.write(f"{',' if num_rows else ''}\n  {_as_json(row)}")
                num_rows += 1
            file.write("\n]\n")
        os.chmod(temporary, 0o644)
        if num_rows:
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return num_rows, len(placed)


def _as_json(row: Row) -> str:
    written = json.dumps(row, ensure_ascii=False)
    try:
        written.encode()
    except UnicodeEncodeError:  # annotations hold none: it is in words of the command line
        raise ConfigurationError(
            f"a row cannot be written as UTF-8 ({ascii(row)[:200]}); change its question"
        ) from None
    return written


def _place(source: Path, target: Path) -> None:
    if target.exists():
        if target.samefile(source) or filecmp.cmp(source, target, shallow=False):
            return
        raise ConfigurationError(f"{target} is there, and is another image than {source}; choose another --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()  # the bytes, where the folder holds a symbolic link
    try:
        os.link(real, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(real, target)


__all__ = ["IMAGES", "write_rows"]
