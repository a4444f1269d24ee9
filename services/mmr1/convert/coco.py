"""COCO's instances (`instances_train2017.json`, and every tool that writes them): detection.

`images`, `annotations` and `categories`, as https://cocodataset.org/#format-data has them: a box is [x, y, width,
height] in pixels, `iscrowd` 1 marks one box around many objects. A list of objects is the truth about an image only if
it is whole, so an image of which one annotation is bad is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmr1.convert.annotations import Account, BadAnnotation, LeftOut, Row, box, mapping, member, read_json, text
from mmr1.convert.pictures import Pictures
from mmr1.errors import ConfigurationError

FORM = "a JSON object with images, annotations and categories, as COCO's instances_train2017.json"
QUESTION = "Detect every object of these categories: {categories}. Give each one's box and label."
MAX_OBJECTS = 1_000  # the reward server's bound of a solution

Crowds = Literal["leave-out", "ignore", "keep"]


@dataclass(frozen=True, slots=True)
class Choices:
    """What is asked, and what becomes of images that are no plain case.

    crowds: leave-out leaves the image out; ignore takes the crowd's box as a region, in which what is found counts
    neither way; keep takes that box as an object.
    empty: whether an image without objects is a problem, whose solution is the empty list.
    categories: names; empty: all.
    """

    question: str = QUESTION
    crowds: Crowds = "leave-out"
    empty: bool = True
    categories: tuple[str, ...] = ()


def problems(path: Path, pictures: Pictures, choices: Choices, account: Account) -> Iterator[Row]:
    """One problem for each image, in the file's order.

    Raises:
        ConfigurationError: the file is no such file, has none of the categories named, or some that differ only in
            case.
    """
    document = read_json(path, FORM)
    if not isinstance(document, dict) or not all(isinstance(document.get(name), list) for name in _PARTS):
        raise ConfigurationError(f"{path} has no lists {', '.join(_PARTS)}; give {FORM}")
    names = _categories(document["categories"], account)
    chosen = _chosen(path, names, choices.categories)
    asked = choices.question.replace("{categories}", ", ".join(chosen))
    grouped = _by_image(document["annotations"])
    seen: set[Any] = set()

    def convert(image: Mapping[str, Any], key: str) -> list[Row]:
        id_ = member(image, "id", key, (int, str), "an id")
        if id_ in seen:
            raise BadAnnotation(f"{key}.id", f"is {id_!r}, as that of another image")
        seen.add(id_)
        name = text(image, "file_name", key)
        size = pictures.annotated_size(image, name, key)
        objects = _Objects(names, chosen, choices.crowds, account).of(grouped.get(id_, []), size)
        if not choices.empty and all("iscrowd" in one for one in objects):
            raise LeftOut("it has no objects (--empty keep keeps it)")
        return [{"problem": asked, "solution": objects, "image": name, "task": "detection"}]

    yield from account.each(((f"images[{index}]", image) for index, image in enumerate(document["images"])), convert)
    for id_ in grouped.keys() - seen:
        for number, annotation in grouped[id_]:
            shown = annotation.get("image_id")
            account.bad(BadAnnotation(f"annotations[{number}].image_id", f"is {shown!r}, no image's"))


_PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class _Objects:
    """An image's objects from its annotations, all of which are looked at, so that each bad one is named."""

    names: Mapping[Any, str]
    chosen: tuple[str, ...]
    crowds: Crowds
    account: Account

    def of(self, annotations: list[tuple[int, Mapping[str, Any]]], size: tuple[int, int]) -> list[dict[str, Any]]:
        """Raises LeftOut: one of them is bad, or a crowd, or there are too many."""
        objects, is_whole, has_crowd = [], True, False
        for index, annotation in annotations:
            key = f"annotations[{index}]"
            try:
                label = self._label(annotation, key)
                crowd = annotation.get("iscrowd", 0)
                if crowd not in (0, 1):
                    raise BadAnnotation(f"{key}.iscrowd", f"is {crowd!r}, not 0 or 1")
                found = {"bbox_2d": box(annotation, "bbox", key, size, is_xywh=True), "label": label}
            except BadAnnotation as error:
                self.account.bad(error)
                is_whole = False
                continue
            if label not in self.chosen:
                continue
            has_crowd |= bool(crowd)
            objects.append({**found, "iscrowd": 1} if crowd and self.crowds == "ignore" else found)
        if not is_whole:
            raise LeftOut("one of its annotations is bad")
        if has_crowd and self.crowds == "leave-out":
            raise LeftOut("it has a crowd (--crowds ignore takes it, and what is found there counts neither way)")
        if len(objects) > MAX_OBJECTS:
            raise LeftOut(f"it has more than {MAX_OBJECTS} objects")
        return objects

    def _label(self, annotation: Mapping[str, Any], key: str) -> str:
        category = member(annotation, "category_id", key, (int, str), "an id")
        if category not in self.names:
            raise BadAnnotation(f"{key}.category_id", f"is {category!r}, no category's")
        return self.names[category]


def _categories(values: list[Any], account: Account) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for index, value in enumerate(values):
        key = f"categories[{index}]"
        try:
            category = mapping(value, key)
            id_ = member(category, "id", key, (int, str), "an id")
            if id_ in names:
                raise BadAnnotation(f"{key}.id", f"is {id_!r}, as that of {names[id_]!r}")
            names[id_] = text(category, "name", key).strip()
        except BadAnnotation as error:
            account.bad(error)
    return names


def _chosen(path: Path, names: Mapping[Any, str], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Category names in the file's order, each once."""
    there = tuple(dict.fromkeys(names.values()))
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise ConfigurationError(f"{path} has no category {unknown[0]!r}; it has {', '.join(there[:100])}")
    chosen = tuple(name for name in there if not wanted or name in wanted)
    alike = defaultdict(list)
    for name in chosen:
        alike[name.casefold()].append(name)
    if same := [names for names in alike.values() if len(names) > 1]:
        shown = "; ".join(" and ".join(map(repr, names)) for names in same[:20])
        more = f" (and {len(same) - 20} more)" if len(same) > 20 else ""
        raise ConfigurationError(
            f"{path} has categories that differ only in case, which labels are compared without: {shown}{more}; rename "
            "them in the file, or name with --categories those to take"
        )
    return chosen


def _by_image(annotations: list[Any]) -> dict[Any, list[tuple[int, Mapping[str, Any]]]]:
    """Those of an image, by its id; what is no object or has no id to hash stands under None."""
    grouped: defaultdict[Any, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for index, annotation in enumerate(annotations):
        row = annotation if isinstance(annotation, dict) else {}
        image = row.get("image_id")
        grouped[image if isinstance(image, int | str) else None].append((index, row))
    return grouped


__all__ = ["FORM", "MAX_OBJECTS", "QUESTION", "Choices", "Crowds", "problems"]
