"""One answer to one held-out problem, with its verdict: all that the metrics are made of, and a line of samples.jsonl.

Knows no metric, and nothing of how answers come about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Answer:
    """A judged completion. An answer that the judge could not judge is none: it is an error of the evaluation.

    `problem` is the problem's place among those evaluated and `sample` which of its completions this is, both from 0.
    `params` and `image_size` (width, height) are what it was scored with: they say what its coordinates count.
    """

    problem: int
    sample: int
    task: str
    response: str
    solution: Any
    is_valid: bool  # the judge has found an answer in it
    is_truncated: bool  # it ended at the token limit
    reward: float
    components: dict[str, float] = field(default_factory=dict)
    parsed: Any = None
    detail: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    version: str = ""  # of the policy that answered

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Answer:
        """What `as_json` gave, read back. Keys of others are left aside.

        Raises:
            KeyError, TypeError, ValueError: it is no answer.
        """
        return _reader().validate_python({name: record[name] for name in Answer.__dataclass_fields__})


@cache
def _reader() -> TypeAdapter[Answer]:
    return TypeAdapter(Answer)
