"""CLEVR and CLEVR-CoGenT: counting.

From `CLEVR_trainA_questions.json` those questions whose program ends with `count`, with their answers; from
`CLEVR_trainA_scenes.json` how many objects each scene holds. Both name an image by `image_filename`, which lies in
`images/trainA`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmr1.convert.annotations import Account, BadAnnotation, LeftOut, Row, mapping, member, read_json, text
from mmr1.convert.pictures import Pictures
from mmr1.errors import ConfigurationError

FORM = "CLEVR's questions or scenes, as CLEVR_trainA_questions.json"
QUESTION = "How many objects are there in the image?"  # of a scene; questions bring their own words


def problems(path: Path, pictures: Pictures, question: str, account: Account) -> Iterator[Row]:
    """One problem for each question that counts, or for each scene.

    Raises:
        ConfigurationError: the file is neither.
    """
    document = read_json(path, FORM)
    kinds = [kind for kind in ("questions", "scenes") if isinstance(document, dict) and kind in document]
    if len(kinds) != 1 or not isinstance(document[kinds[0]], list):
        raise ConfigurationError(f"{path} has no list of questions or scenes; give {FORM}")
    (kind,) = kinds

    def convert(row: Mapping[str, Any], key: str) -> list[Row]:
        asked, count = _question(row, key) if kind == "questions" else _scene(row, key, question)
        image = text(row, "image_filename", key)
        pictures.size(image, f"{key}.image_filename")
        return [{"problem": asked, "solution": count, "image": image, "task": "counting"}]

    return account.each(((f"{kind}[{index}]", row) for index, row in enumerate(document[kind])), convert)


def _question(row: Mapping[str, Any], key: str) -> tuple[str, int]:
    if "answer" not in row and "program" not in row:
        raise LeftOut("it has no answer, as all of a test split")
    program = member(row, "program", key, list, "a program")
    last = mapping(program[-1] if program else None, f"{key}.program[-1]")
    # The published files say `function`; the generator's own say `type`.
    if text(last, "function" if "function" in last else "type", f"{key}.program[-1]") != "count":
        raise LeftOut("it does not ask for a count")
    answer = str(member(row, "answer", key, (str, int), "a number"))
    if not (answer.isascii() and answer.isdigit()):
        raise BadAnnotation(f"{key}.answer", f"is {answer!r}, not a number, though its program counts")
    return text(row, "question", key), int(answer)


def _scene(row: Mapping[str, Any], key: str, question: str) -> tuple[str, int]:
    return question, len(member(row, "objects", key, list, "a list of objects"))


__all__ = ["FORM", "QUESTION", "problems"]
