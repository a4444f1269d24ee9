"""PixMo-Count (allenai/pixmo-count): counting.

Rows of `image_url`, `image_sha256`, `label` and `count`, as Parquet or exported as JSON. The images are not part of it:
they are fetched from their addresses by whoever uses them, many of which are dead, and the hash says whether a file is
still the image that was counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from mmr1.convert.annotations import Account, BadAnnotation, Row, member, rows_of, text
from mmr1.convert.pictures import Pictures

FORM = "PixMo-Count's rows of image_url, image_sha256, label and count, as Parquet or JSON"
QUESTION = "How many {label} are there in the image?"


def problems(path: Path, pictures: Pictures, question: str, account: Account) -> Iterator[Row]:
    """One problem for each row whose image is there: a file named by the image's SHA-256, or as its address ends.

    Raises:
        ConfigurationError: the file cannot be read.
    """

    def convert(row: Mapping[str, Any], key: str) -> list[Row]:
        label = text(row, "label", key).strip()
        count = member(row, "count", key, int, "a whole number")
        if count < 0:
            raise BadAnnotation(f"{key}.count", f"is {count}")
        sha256 = text(row, "image_sha256", key)
        last = PurePosixPath(unquote(urlsplit(text(row, "image_url", key)).path)).name
        image = pictures.named((sha256, last), sha256, f"{key}.image_sha256")
        asked = question.replace("{label}", label)
        return [{"problem": asked, "solution": count, "image": image, "task": "counting"}]

    return account.each(rows_of(path, FORM), convert)


__all__ = ["FORM", "QUESTION", "problems"]
