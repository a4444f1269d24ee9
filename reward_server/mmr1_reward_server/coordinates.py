"""What a caller declares about coordinates, and the conversion that follows from it. Nothing is guessed from numbers.

A space says what a coordinate counts: pixels from the image's upper left corner (`absolute`), thousandths of its width
or height (`normalized_1000`), or fractions of them (`normalized_1`). Order is x, y; boxes are x1, y1, x2, y2.

It reads the caller's boxes and points, and knows no response and no reward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence, Sized
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, WithJsonSchema

from .api import Pixels
from .registry import BadItem, Params

Space = Literal["absolute", "normalized_1000", "normalized_1"]
Size = tuple[float, float]
BoxTuple = tuple[float, float, float, float]
PointTuple = tuple[float, float]

_NUMBERS = {"type": "array", "items": {"type": "number"}}
BOX_SCHEMA: dict[str, Any] = {**_NUMBERS, "minItems": 4, "maxItems": 4, "description": "x1, y1, x2, y2"}
TEXT_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 2, "description": "JSON text of it"}
POINT_SCHEMA: dict[str, Any] = {**_NUMBERS, "minItems": 2, "maxItems": 2, "description": "x, y"}

# Of a solution: as many as are read out of a response. Matching takes the cube of it.
MAX_OBJECTS = 1_000

# Objects at an image's edge may reach a little beyond it; one this many images away was declared in the wrong space.
_MAX_EXTENTS = 2.0


class CoordinateParams(Params):
    """Params of a task that compares coordinates."""

    response_space: Space = Field("absolute", description="what the response's coordinates count; never guessed")
    solution_space: Space = Field("absolute", description="what the solution's coordinates count; never guessed")
    resized_size: tuple[Pixels, Pixels] | None = Field(
        None,
        description="width and height of the image as the model saw it, if resized: absolute response coordinates are "
        "then pixels of that one. image_size and absolute solutions are always of the original",
    )


def to_solution_space(params: CoordinateParams, image_size: tuple[int, int] | None) -> Size:
    """Factors for x and y that bring response coordinates into the solution's space.

    Raises BadItem when that takes an image_size and there is none. In one and the same space it takes none.
    """
    if params.response_space == params.solution_space and (
        params.response_space != "absolute" or params.resized_size is None
    ):
        return 1.0, 1.0
    from_extent = _response_extent(params, image_size)
    to_extent = _extent("solution_space", params.solution_space, image_size)
    return to_extent[0] / from_extent[0], to_extent[1] / from_extent[1]


class PixelFactors(NamedTuple):
    """Factors for x and y that bring coordinates to pixels of the original image, and its diagonal in pixels."""

    of_response: Size
    of_solution: Size
    diagonal: float


def to_pixels(params: CoordinateParams, image_size: tuple[int, int] | None) -> PixelFactors:
    """For measures that change when one axis is stretched, such as distances. Raises BadItem without an image_size."""
    if image_size is None:
        raise BadItem(
            "distances are measured in pixels: send image_size, the original image's [width, height] "
            "([1000, 1000] measures normalized coordinates on their own square grid)"
        )
    width, height = image_size
    response = _response_extent(params, image_size)
    solution = _extent("solution_space", params.solution_space, image_size)
    return PixelFactors(
        (width / response[0], height / response[1]),
        (width / solution[0], height / solution[1]),
        math.hypot(width, height),
    )


def check_within_image(
    coordinates: Iterable[float], params: CoordinateParams, image_size: tuple[int, int] | None
) -> None:
    """Raises BadItem when true coordinates lie so far outside the image that `solution_space` cannot be theirs."""
    if params.solution_space == "absolute" and image_size is None:
        return
    extent = max(_extent("solution_space", params.solution_space, image_size))
    largest = max(map(abs, coordinates), default=0.0)
    if largest > _MAX_EXTENTS * extent:
        raise BadItem(
            f"the solution has a coordinate of {largest:g}, but solution_space is {params.solution_space}, "
            f"where the image ends at {extent:g}: name the space that it is in"
        )


def from_text(solution: object) -> object:
    """What a solution says that is JSON text, which is all that some datasets and clients can hold; others as they are.

    Raises ValueError.
    """
    if not isinstance(solution, str):
        return solution
    try:
        return json.loads(solution)
    except (ValueError, RecursionError):
        raise ValueError("is a text, but not JSON: send the list itself, or its JSON text") from None


def check_number(objects: Sized) -> None:
    """Raises ValueError for a solution of more than MAX_OBJECTS."""
    if len(objects) > MAX_OBJECTS:
        raise ValueError(f"has {len(objects)} objects, the limit is {MAX_OBJECTS}")


def read_true_box(value: object) -> BoxTuple:
    """A caller's box. Raises ValueError: an empty or inverted one could not be found by any model."""
    numbers = _read_numbers(value, 4)
    if numbers is None or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise ValueError("must be a box [x1, y1, x2, y2]: four finite numbers, x1 < x2 and y1 < y2")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def read_true_point(value: object) -> PointTuple:
    """A caller's point, or the centre of its box. Raises ValueError."""
    numbers = _read_numbers(value, 2)
    if numbers is not None:
        return numbers[0], numbers[1]
    try:
        x1, y1, x2, y2 = read_true_box(value)
    except ValueError:
        raise ValueError("must be a point [x, y] or a box [x1, y1, x2, y2], x1 < x2 and y1 < y2") from None
    return (x1 + x2) / 2, (y1 + y2) / 2


TrueBox = Annotated[BoxTuple, BeforeValidator(read_true_box), WithJsonSchema(BOX_SCHEMA)]


def _response_extent(params: CoordinateParams, image_size: tuple[int, int] | None) -> Size:
    seen_size = image_size if params.resized_size is None else params.resized_size
    return _extent("response_space", params.response_space, seen_size)


def _extent(name: str, space: Space, size: tuple[int, int] | None) -> Size:
    """The coordinates of an image's lower right corner in a space."""
    if space == "normalized_1":
        return 1.0, 1.0
    if space == "normalized_1000":
        return 1000.0, 1000.0
    if size is None:
        raise BadItem(f"{name} is absolute and has to be converted: send image_size, the original's [width, height]")
    return float(size[0]), float(size[1])


def _read_numbers(value: object, count: int) -> Sequence[float] | None:
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in value):
        return None
    try:
        numbers = [float(number) for number in value]
    except OverflowError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None
