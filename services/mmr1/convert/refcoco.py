"""RefCOCO, RefCOCO+ and RefCOCOg, in the forms of JSON that they go round in: grounding.

- The original's refs, as JSON instead of a pickle (`refs(unc).json`), with the `instances.json` beside it: each ref
  names an annotation, whose box is COCO's, and has several `sentences`.
- One COCO file whose images carry a `caption` (MDETR's `finetune_refcoco_train.json`): an image for each expression.
- Rows of an expression, an image and a box [x1, y1, x2, y2]: `expression` and `img_path` (Shikra's), or `sent` and
  `image` (Qwen-VL's evaluation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mmr1.convert.annotations import (
    Account,
    BadAnnotation,
    LeftOut,
    Row,
    box,
    mapping,
    member,
    read_json,
    rows_of,
    text,
)
from mmr1.convert.pictures import Pictures
from mmr1.errors import ConfigurationError
from mmr1.reading.json_rows import json_rows

FORM = "refs as JSON, a COCO file with captions, or rows of an expression, an image and a box"
INSTANCES = "the instances.json that is published beside the refs"
QUESTION = "Find {expression} and give its box."
_LINES_LOOKED_AT = 16
# (the expression's key, the image's)
_ROW_KEYS = (("expression", "img_path"), ("sent", "image"))


@dataclass(frozen=True, slots=True)
class Choices:
    """What is asked of an expression; `split`: of the refs' (train, val, testA, testB, test); None: all of them."""

    question: str = QUESTION
    split: str | None = None
    instances: Path | None = None


def problems(path: Path, pictures: Pictures, choices: Choices, account: Account) -> Iterator[Row]:
    """One problem for each expression, in the file's order.

    Raises:
        ConfigurationError: the file is none of these, or options and form do not fit together.
    """
    found = _of_refs if choices.instances is not None else _of_captions if _is_captioned(path) else _of_rows
    if choices.split is not None and found is not _of_refs:
        raise ConfigurationError(f"--split {choices.split}: only refs have splits, and {path} is a split by itself")
    for expression, image, solution in found(path, pictures, choices, account):
        problem = choices.question.replace("{expression}", expression.strip())
        yield {"problem": problem, "solution": solution, "image": image, "task": "grounding"}


_Found = tuple[str, str, list[float]]  # expression, image, box


def _of_refs(path: Path, pictures: Pictures, choices: Choices, account: Account) -> Iterator[_Found]:
    assert choices.instances is not None
    instances = choices.instances
    images, annotations = _instances(instances)
    refs = read_json(path, FORM)
    if not isinstance(refs, list):
        raise ConfigurationError(f"{path} is no list of refs; give {FORM}")
    splits: set[str] = set()

    def convert(ref: Mapping[str, Any], key: str) -> list[_Found]:
        split = text(ref, "split", key)
        splits.add(split)
        if choices.split not in (None, split):
            raise LeftOut("it is of another split")
        annotation = _known(annotations, ref, "ann_id", key, instances)
        image = _known(images, ref, "image_id", key, instances)
        name = text(image, "file_name", f"{key}.image_id")  # a ref's own file_name names no file
        size = pictures.annotated_size(image, name, f"{key}.image_id")
        solution = box(annotation, "bbox", f"{key}.ann_id", size, is_xywh=True)
        sentences = member(ref, "sentences", key, list, "a list of sentences")
        return [(_sentence(one, f"{key}.sentences[{index}]"), name, solution) for index, one in enumerate(sentences)]

    yield from account.each(((f"[{index}]", ref) for index, ref in enumerate(refs)), convert)
    if choices.split is not None and choices.split not in splits:
        raise ConfigurationError(f"--split {choices.split}: {path} has {', '.join(sorted(splits)) or 'none'}")


def _sentence(value: Any, key: str) -> str:
    sentence = mapping(value, key)
    return text(sentence, "sent" if "sent" in sentence else "raw", key)


def _of_captions(path: Path, pictures: Pictures, choices: Choices, account: Account) -> Iterator[_Found]:
    document = read_json(path, FORM)
    boxes: dict[Any, list[tuple[int, Mapping[str, Any]]]] = {}
    for index, annotation in enumerate(document.get("annotations") or []):
        if isinstance(annotation, dict) and isinstance(annotation.get("image_id"), int | str):
            boxes.setdefault(annotation["image_id"], []).append((index, annotation))
        else:
            account.bad(BadAnnotation(f"annotations[{index}].image_id", "is missing"))

    def convert(image: Mapping[str, Any], key: str) -> list[_Found]:
        found = boxes.get(member(image, "id", key, (int, str), "an id"), [])
        if len(found) != 1:
            raise BadAnnotation(f"{key}.id", f"is {image['id']!r}, which {len(found)} annotations have, not one")
        name, expression = text(image, "file_name", key), text(image, "caption", key)
        size = pictures.annotated_size(image, name, key)
        number, annotation = found[0]
        return [(expression, name, box(annotation, "bbox", f"annotations[{number}]", size, is_xywh=True))]

    return account.each(((f"images[{index}]", image) for index, image in enumerate(document["images"])), convert)


def _of_rows(path: Path, pictures: Pictures, choices: Choices, account: Account) -> Iterator[_Found]:
    def convert(row: Mapping[str, Any], key: str) -> list[_Found]:
        if "sentences" in row:
            raise ConfigurationError(f"{path} holds refs, whose boxes are elsewhere; give --instances, {INSTANCES}")
        expression, image = next((keys for keys in _ROW_KEYS if keys[0] in row), _ROW_KEYS[0])
        name = text(row, image, key)
        size = pictures.annotated_size(row, name, key)
        return [(text(row, expression, key), name, box(row, "bbox", key, size, is_xywh=False))]

    return account.each(rows_of(path, FORM), convert)


def _is_captioned(path: Path) -> bool:
    """One document with images in it, and not rows; these are told by what lines hold, not by a name alone."""
    if path.suffix in (".jsonl", ".parquet"):
        return False
    try:
        document = read_json(path, FORM)
    except ConfigurationError:
        if path.is_file() and any(_is_row(row) for _, row in islice(json_rows(path), _LINES_LOOKED_AT)):
            return False
        raise
    return isinstance(document, dict) and isinstance(document.get("images"), list)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and not value.keys().isdisjoint({"sentences", *chain.from_iterable(_ROW_KEYS)})


def _instances(path: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    document = read_json(path, INSTANCES)
    try:
        return tuple({one["id"]: one for one in document[name]} for name in ("images", "annotations"))  # type: ignore[return-value]
    except (TypeError, KeyError):
        raise ConfigurationError(f"{path} has no images and annotations with ids; give {INSTANCES}") from None


def _known(there: dict[Any, Any], ref: Mapping[str, Any], name: str, key: str, path: Path) -> Mapping[str, Any]:
    id_ = member(ref, name, key, (int, str), "an id")
    if id_ not in there:
        raise BadAnnotation(f"{key}.{name}", f"is {id_!r}, which {path} does not have")
    return mapping(there[id_], f"{key}.{name}")


__all__ = ["FORM", "INSTANCES", "QUESTION", "Choices", "problems"]
