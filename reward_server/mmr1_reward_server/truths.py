"""True answers that are texts, of which some datasets make numbers. It knows no task."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BeforeValidator, StringConstraints, WithJsonSchema

MAX_TRUE_CHARS = 100_000


def number_as_text(solution: object) -> object:
    """A number as it is written, 3.0 as 3; anything else, True and infinity too, as it is."""
    if isinstance(solution, bool) or not isinstance(solution, int | float):
        return solution
    if isinstance(solution, int):
        # More digits than any JSON number that was read has, and than Python writes.
        return str(solution) if solution.bit_length() < 2**12 else solution
    if not math.isfinite(solution):
        return solution
    return str(int(solution)) if solution.is_integer() and abs(solution) < 1e15 else repr(solution)


TrueAnswer = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=MAX_TRUE_CHARS),
    BeforeValidator(number_as_text),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_TRUE_CHARS}, {"type": "number"}]}),
]
