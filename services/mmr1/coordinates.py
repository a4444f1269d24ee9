"""Boxes between a dataset, which has them in pixels of the original image, and a model, which says them its own way.

A dataset's boxes are `[x1, y1, x2, y2]` in pixels of the original image, always. A model says them in a space of its
own: pixels of the image as its processor resized it (Qwen2.5-VL), thousandths of width and height (Qwen2-VL, Qwen3-VL)
or fractions. What a model is taught to say and what a question shows it are converted here; what it answers is
converted back by the reward server, from the params that are made here. Of a problem with several images the first
one counts, as it does for the reward server. This file draws no prompt and scores nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mmr1.chat_template import model_folder
from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES, pixel_bounds
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import Problem, RewardSpec
from mmr1.resizing import Resize, Size

if TYPE_CHECKING:
    from mmr1.config import RunConfig

Space = Literal["absolute", "normalized_1000", "normalized_1"]
_T = TypeVar("_T")

COORDINATE_TASKS = frozenset({"grounding", "detection"})
_BOX_KEYS = ("bbox_2d", "bbox")  # as the reward server reads an object of detection
_CROWD_KEY = "iscrowd"  # 1: a region that is no object to find
_DIGITS_OF_FRACTIONS = 4
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
# The one way for a problem's text to hold a box; what is written otherwise is left as it stands. Tags around other
# numbers than a box has are no words of a question: they are a mistake.
_BOX_IN_TEXT = re.compile(rf"<box>\s*\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]\s*</box>")
_NUMBERS_IN_TAGS = re.compile(r"<box>\s*\[[\d\s.,+-]*\]\s*</box>")


@dataclass(frozen=True, slots=True)
class Coordinates:
    """What a model's coordinates count. `resize`: how it sees images; None: absolute ones are of the original."""

    space: Space
    resize: Resize | None = None

    @classmethod
    def of(cls, config: RunConfig) -> Coordinates:
        """Those of the run's model, under the run's bounds of pixels.

        Raises:
            ConfigurationError: `coordinates` is auto and nothing is known of the family, or its processor's settings
                cannot be read.
        """
        folder = model_folder(config.model)
        model_type = _model_type(folder)
        family = FAMILIES.get(model_type)
        space: Space | None = None if config.coordinates == "auto" else config.coordinates
        if space is None and family is not None:
            space = family.coordinates
        if space is None:
            raise ConfigurationError(
                f"option 'coordinates': how a {model_type} says boxes is not known here; set coordinates to absolute "
                "(pixels of the original image), normalized_1000 or normalized_1"
            )
        resizes = space == "absolute" and family is not None and family.takes_pixel_bounds
        return cls(space, Resize.of_model(folder, pixel_bounds(config, model_type)) if resizes else None)

    def params(self, image_size: Size) -> dict[str, Any]:
        """What the reward server is told of a response. `image_size`: of the original image.

        Raises:
            ValueError: the processor refuses an image of that size.
        """
        if self.space != "absolute" or self.resize is None:
            return {"response_space": self.space}
        return {"response_space": self.space, "resized_size": list(self.resize(image_size))}

    def box(self, pixels: Sequence[float], image_size: Size) -> list[float]:
        """A box of the original image as the model says it, in whole numbers; fractions with four digits.

        Rounding never leaves it empty.

        Raises:
            ValueError: the processor refuses an image of that size, or a number is beyond all images.
        """
        factors = [extent / side for extent, side in zip(self._extent(image_size), image_size, strict=True)]
        digits = _DIGITS_OF_FRACTIONS if self.space == "normalized_1" else 0
        try:
            x1, y1, x2, y2 = (value * factors[axis % 2] for axis, value in enumerate(pixels))
            (x1, x2), (y1, y2) = _rounded(x1, x2, digits), _rounded(y1, y2, digits)
        except OverflowError:
            raise ValueError("holds a box with a number that is too large") from None
        return [x1, y1, x2, y2]

    def solution(self, solution: Any, image_size: Size) -> Any:
        """A solution whose boxes are as the model says them: a box, a list of boxes or of objects, or JSON text of it.

        A crowd is nothing to be said, and is not there.

        Raises:
            ValueError: it is none of these, or as `box`.
        """
        if isinstance(solution, str):
            try:
                solution = json.loads(solution)
            except (ValueError, RecursionError):
                raise ValueError("is a text, but not the JSON of a box or of objects") from None
        if _is_box(solution):
            return self._true_box(solution, image_size)
        if isinstance(solution, list):
            elements = [self._element(element, image_size) for element in solution]
            return [element for element, of in zip(elements, solution, strict=True) if not _is_crowd(of)]
        raise ValueError(f"is neither a box [x1, y1, x2, y2] nor a list of objects: {json.dumps(solution)[:60]}")

    def text(self, text: str, image_size: Size) -> str:
        """`text` with each `<box>[x1, y1, x2, y2]</box>` replaced by the box as the model says it, without the tags."""

        def said(match: re.Match[str]) -> str:
            return json.dumps(self.box([float(number) for number in match.groups()], image_size))

        return _BOX_IN_TEXT.sub(said, text)

    def _element(self, element: Any, image_size: Size) -> Any:
        if _is_box(element):
            return self._true_box(element, image_size)
        if isinstance(element, Mapping):
            keys = [key for key in _BOX_KEYS if _is_box(element.get(key))]
            if len(keys) == 1:
                said = {key: value for key, value in element.items() if key != _CROWD_KEY}
                return {**said, keys[0]: self._true_box(element[keys[0]], image_size)}
        raise ValueError(f"holds what is neither a box nor an object with a bbox_2d: {json.dumps(element)[:60]}")

    def _true_box(self, pixels: Sequence[float], image_size: Size) -> list[float]:
        """As `box`. Raises ValueError for one that no answer can fit, too."""
        if not (pixels[0] < pixels[2] and pixels[1] < pixels[3]):
            raise ValueError(f"holds the box {json.dumps(pixels)[:60]}, in which not x1 < x2 and y1 < y2")
        return self.box(pixels, image_size)

    def _extent(self, image_size: Size) -> tuple[float, float]:
        """Of the lower right corner of the image, in the model's space."""
        if self.space == "normalized_1000":
            return 1000.0, 1000.0
        if self.space == "normalized_1":
            return 1.0, 1.0
        return image_size if self.resize is None else self.resize(image_size)


class ModelSpace:
    """One run's problems as its model is asked and taught, and rewards as its answers are scored.

    Neither the model nor an image is looked at before a text or a solution holds boxes, or a reward is about them.
    """

    def __init__(self, config: RunConfig, store: ImageStore) -> None:
        self._config = config
        self._store = store

    def of(self, problem: Problem, rewards: tuple[RewardSpec, ...] = ()) -> tuple[Problem, tuple[RewardSpec, ...]]:
        """The problem with the boxes in its text as the model says them, and the rewards with what scoring must know.

        The solution stays as the dataset has it. Params that a reward has already go before those that are made here.

        Raises:
            ConfigurationError: as `Coordinates.of` does, or this problem's image or text is at fault.
        """
        scores = any(spec.task in COORDINATE_TASKS for spec in rewards)
        if not problem.images or not (scores or holds_box(problem.problem)):  # no image: nothing to convert by
            return problem, rewards
        size = self._size(problem)
        params = self._of_problem(problem, "text", lambda: self._coordinates.params(size))
        text = self._of_problem(problem, "text", lambda: self._coordinates.text(problem.problem, size))
        told = tuple(
            replace(spec, params={**params, **spec.params}) if spec.task in COORDINATE_TASKS else spec
            for spec in rewards
        )
        return replace(problem, problem=text), told

    def taught(self, problem: Problem) -> Problem:
        """The same, and the solution of a coordinate task is as the model is to say it.

        Raises:
            ConfigurationError: as `of`, or this problem's solution is at fault.
        """
        asked, _ = self.of(problem)
        if not problem.images or problem.task not in COORDINATE_TASKS:
            return asked
        size = self._size(problem)
        said = self._of_problem(problem, "solution", lambda: self._coordinates.solution(problem.solution, size))
        return replace(asked, solution=said)

    @staticmethod
    def _of_problem(problem: Problem, part: str, step: Callable[[], _T]) -> _T:
        try:
            return step()
        except ValueError as error:
            where = f"problem {problem.position} ({problem.task}, image {problem.images[0]})"
            raise ConfigurationError(f"{where}: its {part} or its image {error}") from None

    @cached_property
    def _coordinates(self) -> Coordinates:
        return Coordinates.of(self._config)

    def _size(self, problem: Problem) -> Size:
        try:
            return self._store.size(problem.images[0])
        except UnreachableImageError:
            raise  # a restart may mend it
        except ImageError as error:
            raise ConfigurationError(f"{error}; restore it, and the same command goes on") from None


def holds_box(text: str) -> bool:
    """Whether a problem's text has a box that is converted."""
    return _BOX_IN_TEXT.search(text) is not None


def wrong_boxes(
    text: str, solution: Any, task: str, keys: tuple[str, str], tasks: Collection[str] = COORDINATE_TASKS
) -> str | None:
    """What is wrong with the boxes of a row, by its key; None: nothing. Opens no image.

    Args:
        keys: of the problem's text, and of the solution.
        tasks: those whose solutions have to be boxes.
    """
    form, size = Coordinates("normalized_1"), (1, 1)  # whether it can be converted, not into what
    key = keys[0]
    try:
        form.text(text, size)
        if odd := next((odd for odd in _NUMBERS_IN_TAGS.findall(text) if not holds_box(odd)), None):
            raise ValueError(f"holds {odd[:60]}, which is no box [x1, y1, x2, y2]")
        key = keys[1]
        if task in tasks:
            form.solution(solution, size)
    except ValueError as error:
        of = f" (of a row of task {task!r})" if key == keys[1] else ""
        return f"key {key!r}{of} {error}; repair or remove the row"
    return None


def check_coordinates(config: RunConfig, tasks: Iterable[str], *, asks: bool = False) -> None:
    """Whether boxes can be asked for and scored, if one of the problems' tasks, a reward or a text is about them.

    Args:
        asks: a problem's text holds a box.

    Raises:
        ConfigurationError: as `Coordinates.of`.
    """
    try:
        model_folder(config.model)
    except ConfigurationError:  # on the hub, and not here yet
        return
    if asks or COORDINATE_TASKS & {*tasks, *(spec.task for spec in config.reward_specs)}:
        Coordinates.of(config)


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"model {folder} has no readable config.json with a model_type; give a Hugging Face model folder"
        ) from None


def _is_box(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 4 and all(_is_number(number) for number in value)


def _is_crowd(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value.get(_CROWD_KEY))


def _is_number(value: Any) -> bool:
    """Of any size: an integer may be larger than a float can be."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _rounded(low: float, high: float, digits: int) -> tuple[float, float]:
    """Two sides of a box to `digits`; where they would meet they are rounded apart."""
    unit = 10**digits
    near = round(low * unit), round(high * unit)
    if near[0] == near[1]:
        near = math.floor(low * unit), math.ceil(high * unit)
    return (near[0] / unit, near[1] / unit) if digits else near


__all__ = [
    "COORDINATE_TASKS",
    "Coordinates",
    "ModelSpace",
    "Space",
    "check_coordinates",
    "holds_box",
    "wrong_boxes",
]
