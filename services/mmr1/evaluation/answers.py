"""One answer to one held-out problem, with its verdict: all that the metrics are made of, and a line of samples.jsonl.

Knows no metric, and nothing of how answers come about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


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

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """What `as_json` gave, read back. Keys of others are left aside.

        Raises:
            KeyError, TypeError: it is no answer.
        """
        known = {name: record[name] for name in cls.__dataclass_fields__}
        size = known["image_size"]
        return cls(**{**known, "image_size": None if size is None else (int(size[0]), int(size[1]))})
