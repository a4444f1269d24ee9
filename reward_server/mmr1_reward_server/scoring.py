"""From an item to its verdict: the pure functions, and the interface of whatever runs them away from the event loop.

They never raise for what an item, a scorer or a model's text can do wrong. This file starts no thread and knows no
HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from .api import Item, Outcome, Result, first_problem
from .registry import BadItem, InvalidOutput, Registry, Verdict

logger = logging.getLogger(__name__)

MAX_NESTING = 64  # of lists and objects within a solution or params; JSON readers stop somewhere beyond 100

_MAX_DETAIL_CHARS = 500
_NESTING = (list, dict)
_RESULT = TypeAdapter(Result)


class Overloaded(Exception):
    """No more items can be taken now. Nothing of the request was scored; it may be sent again."""


class WorkersCannotStart(Exception):
    """No worker process gets ready. Says why in one line."""


class Scored:
    """The verdict on one item and how long it took: as an object, and as the JSON that a worker has made of it.

    Most verdicts pass through the server without being looked into, so each form is made from the other when asked for.
    `refused`: a verifier_error that is the caller's own, with this item in any other try too.
    """

    __slots__ = ("_encoded", "_result", "outcome", "refused", "reward", "seconds")

    def __init__(self, result: Result, seconds: float, *, refused: bool = False) -> None:
        self._result: Result | None = result
        self._encoded: bytes | None = None
        self.outcome = result.outcome
        self.reward = result.reward
        self.seconds = seconds
        self.refused = refused

    @classmethod
    def from_json(
        cls, encoded: bytes, outcome: Outcome, reward: float | None, seconds: float, *, refused: bool
    ) -> Scored:
        """`encoded` is a whole Result with this outcome and reward."""
        self = cls.__new__(cls)
        self._result, self._encoded = None, encoded
        self.outcome, self.reward, self.seconds, self.refused = outcome, reward, seconds, refused
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scored) and (self.result, self.seconds) == (other.result, other.seconds)

    __hash__ = None  # type: ignore[assignment]

    @property
    def result(self) -> Result:
        if self._result is None:
            assert self._encoded is not None
            self._result = _RESULT.validate_json(self._encoded)
        return self._result

    @property
    def encoded(self) -> bytes:
        if self._encoded is None:
            assert self._result is not None
            self._encoded = encode_result(self._result)
        return self._encoded


class Scoring(Protocol):
    """Runs `score_item` off the event loop, each item under a deadline."""

    @property
    def num_pending(self) -> int:
        """Items taken and not yet answered."""

    @property
    def unready(self) -> str | None:
        """Why no more items should be sent here; None when they may."""

    @property
    def num_alive(self) -> int:
        """Worker processes that score, or could."""

    async def start(self) -> None:
        """Returns when items can be scored. Raises WorkersCannotStart."""

    async def score(self, items: Sequence[Item]) -> list[Scored]:
        """One verdict for each item, in order.

        Raises Overloaded, before it waits for anything, and nothing else that an item can cause.
        """

    async def close(self) -> None:
        """Ends what runs. `score` must not be called afterwards."""


def too_deep(item: Item) -> Scored | None:
    """The refusal of an item whose solution or params are nested too deeply to be passed on; None for any other."""
    level = [value for value in (item.solution, *item.params.values()) if isinstance(value, _NESTING)]
    for _ in range(MAX_NESTING):
        if not level:
            return None
        inner = (value for one in level for value in (one.values() if isinstance(one, dict) else one))
        level = [value for value in inner if isinstance(value, _NESTING)]
    if not level:
        return None
    detail = f"lists and objects in solution or params are nested more than {MAX_NESTING} levels deep"
    return Scored(without_reward(item, Outcome.VERIFIER_ERROR, detail), 0.0, refused=True)


def encode_result(result: Result) -> bytes:
    """Raises PydanticSerializationError for a `parsed` that no JSON can hold."""
    return _RESULT.dump_json(result)


def score_item(registry: Registry, item: Item, *, max_response_chars: int) -> Result:
    """The verdict on one item. Takes as long as its scorer takes."""
    return scored_item(registry, item, max_response_chars=max_response_chars).result


def scored_item(registry: Registry, item: Item, *, max_response_chars: int) -> Scored:
    """As `score_item`, for whoever has to know whose fault a verifier_error is. Not timed."""
    try:
        return Scored(_verdict(registry, item, max_response_chars), 0.0)
    except BadItem as error:
        return Scored(without_reward(item, Outcome.VERIFIER_ERROR, str(error)), 0.0, refused=True)
    except Exception as error:  # a scorer may raise anything, and that is its own failure, not the model's
        logger.exception("scorer failed", extra={"fields": {"task": item.task, "item": item.id}})
        detail = f"scorer of {item.task} failed: {type(error).__name__}: {error}"
        return Scored(without_reward(item, Outcome.VERIFIER_ERROR, detail), 0.0)


def _verdict(registry: Registry, item: Item, max_response_chars: int) -> Result:
    """Raises BadItem, and whatever the scorer raises."""
    task = registry[item.task]
    sample = task.read(item)
    try:
        if len(item.response) > max_response_chars:
            raise InvalidOutput(f"the response has {len(item.response)} characters, the limit is {max_response_chars}")
        return _accepted(item, task.score(sample))
    except InvalidOutput as error:
        return _floored(item, task.floor_with(sample.params), error)


def without_reward(item: Item, outcome: Outcome, detail: str) -> Result:
    return Result(id=item.id, outcome=outcome, reward=None, detail=_sentence(detail))


def _accepted(item: Item, verdict: Verdict) -> Result:
    """A scorer's verdict as a result; one that is no finite number is the scorer's failure."""
    try:
        return Result(
            id=item.id,
            outcome=Outcome.OK,
            reward=verdict.reward,
            components=verdict.components,
            parsed=verdict.parsed,
            detail=_sentence(verdict.detail),
        )
    except ValidationError as error:
        detail = f"scorer of {item.task} returned an unusable verdict: {first_problem(error)}"
        return without_reward(item, Outcome.VERIFIER_ERROR, detail)


def _floored(item: Item, floor: float, error: InvalidOutput) -> Result:
    return Result(
        id=item.id,
        outcome=Outcome.INVALID_OUTPUT,
        reward=floor,
        parsed=error.parsed,
        detail=_sentence(error.detail),
    )


def _sentence(text: str) -> str:
    """One bounded line that can always be encoded."""
    line = " ".join(text[: 2 * _MAX_DETAIL_CHARS].split())[:_MAX_DETAIL_CHARS]
    return line.encode("utf-8", "replace").decode("utf-8")
