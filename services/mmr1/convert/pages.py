"""Pages with their text, as Fox's benchmark has them (`en_page_ocr.json`) and sets of pages made after it: OCR.

Rows of `image` and `conversations`: what the human asks (`<image>` marks the picture's place) and, after it, the page's
text. A conversation that goes on gives a problem for each further question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmr1.convert.annotations import Account, BadAnnotation, Row, mapping, member, rows_of, text
from mmr1.convert.pictures import Pictures

FORM = "rows of image and conversations, as Fox's en_page_ocr.json"
_ASKERS, _ANSWERERS = ("human", "user"), ("gpt", "assistant")
_IMAGE = "<image>"


def problems(path: Path, pictures: Pictures, question: str | None, account: Account) -> Iterator[Row]:
    """One problem for each question and answer. `question`: asked instead of the file's own words.

    Raises:
        ConfigurationError: the file cannot be read.
    """

    def convert(row: Mapping[str, Any], key: str) -> list[Row]:
        image = text(row, "image", key)
        turns = list(_turns(row, key))
        pictures.size(image, f"{key}.image")
        return [
            {"problem": question or asked, "solution": said, "image": image, "task": "ocr"} for asked, said in turns
        ]

    return account.each(rows_of(path, FORM), convert)


def _turns(row: Mapping[str, Any], key: str) -> Iterator[tuple[str, str]]:
    key = f"{key}.conversations"
    values = member(row, "conversations", key.removesuffix(".conversations"), list, "a list of turns")
    if not values or len(values) % 2:
        raise BadAnnotation(key, f"has {len(values)} turns, not questions each with an answer")
    for index in range(0, len(values), 2):
        asked = _said(values[index], f"{key}[{index}]", _ASKERS)
        asked = " ".join(asked.replace(_IMAGE, " ").split())
        if not asked:
            raise BadAnnotation(f"{key}[{index}].value", "asks nothing")
        yield asked, _said(values[index + 1], f"{key}[{index + 1}]", _ANSWERERS)


def _said(value: Any, key: str, speakers: tuple[str, ...]) -> str:
    turn = mapping(value, key)
    speaker = text(turn, "from", key)
    if speaker not in speakers:
        raise BadAnnotation(f"{key}.from", f"is {speaker!r}, where {speakers[0]} speaks")
    return text(turn, "value", key)


__all__ = ["FORM", "problems"]
