"""length: is the response as long as it should be? It counts characters or words, not a model's tokens.

It does not know whether the answer is right.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from ..api import Example, Item, Outcome, Result
from ..registry import Params, Sample, Task, Verdict
from ..text import tokenise


class LengthParams(Params):
    shape: Literal["band", "cosine", "overlong"] = Field("band", description="how the reward depends on the length")
    max: int = Field(ge=1, le=10_000_000, description="band: the longest that gets 1; else where the curve ends")
    min: int = Field(0, ge=0, description="band: the shortest that gets 1; overlong: where it begins to fall")
    unit: Literal["characters", "words"] = Field(
        "words",
        description="characters include spaces; Chinese and other scripts without spaces have a word a character",
    )
    at_zero: float = Field(1.0, ge=-1, le=1, description="cosine: the reward of length 0")
    at_max: float = Field(0.5, ge=-1, le=1, description="cosine: the reward from length max on")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        for name in ("min",) if self.shape == "cosine" else ("at_zero", "at_max"):
            if name in self.model_fields_set:
                raise ValueError(f"shape {self.shape} has no {name}")
        return self


def band(length: int, low: int, high: int) -> float:
    """1 from `low` to `high`; below it length / low, above it falling as fast as to reach 0 at twice `high`."""
    if length < low:
        return length / low
    return min(1.0, max(0.0, 2.0 - length / high))


def cosine(length: int, end: int, at_zero: float, at_end: float) -> float:
    """Half a cosine wave from `at_zero` to `at_end`, which stays from `end` on: it does not swing back.

    CosFn of Yeo et al., Demystifying Long Chain-of-Thought Reasoning in LLMs (arXiv 2502.03373).
    """
    done = min(length / end, 1.0)
    return at_end + 0.5 * (at_zero - at_end) * (1.0 + math.cos(math.pi * done))


def overlong(length: int, begin: int, end: int) -> float:
    """0 up to `begin`, then linear to -1 at `end`, and -1 beyond.

    The soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13): `end` is its L_max, `end - begin` its L_cache.
    """
    if length <= begin:
        return 0.0
    return -1.0 if length >= end else (begin - length) / (end - begin)


def score(sample: Sample[Any, LengthParams]) -> Verdict:
    params = sample.params
    length = len(sample.response) if params.unit == "characters" else len(tokenise(sample.response))
    if params.shape == "band":
        reward = band(length, params.min, params.max)
    elif params.shape == "cosine":
        reward = cosine(length, params.max, params.at_zero, params.at_max)
    else:
        reward = overlong(length, params.min, params.max)
    return Verdict(reward, {"length": float(length)}, {"length": length}, f"{length} {params.unit}")


def floor_for(params: LengthParams) -> float:
    """The worst that the shape gives."""
    worst = {"band": 0.0, "cosine": min(params.at_zero, params.at_max), "overlong": -1.0}
    return worst[params.shape]


LENGTH = Task(
    name="length",
    summary="The number of characters or words of the whole response, against a range. The solution is not looked at.",
    formula="band: 1 from min to max; below, length / min; above, max(0, 2 - length / max). "
    "cosine: at_max + (at_zero - at_max) * (1 + cos(pi * min(length / max, 1))) / 2 (arXiv 2502.03373). "
    "overlong: 0 up to min, -1 from max on, linear between (DAPO, arXiv 2503.14476, eq. 13). "
    "The floor is the worst that the shape gives: 0, min(at_zero, at_max), -1.",
    floor=0.0,
    floor_for=floor_for,
    solution=TypeAdapter(Any),
    params=LengthParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="length",
            response="one two three four five six",
            solution=None,
            params={"shape": "overlong", "min": 4, "max": 8},
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=-0.5,
            components={"length": 6.0},
            parsed={"length": 6},
            detail="6 words",
        ),
    ),
)
