"""Which items can never be scored, whatever the response: asked of a whole dataset, one line of items at a time.

Each item is scored once, with the response that it brings (an empty one costs least). Serves nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pydantic import TypeAdapter, ValidationError

from .api import Item, first_problem
from .registry import Registry
from .scoring import scored_item, too_deep
from .settings import SettingsError

_LINE = TypeAdapter(list[Item])


def refusals(registry: Registry, lines: Iterable[str], *, max_response_chars: int) -> Iterator[str]:
    """For each line, a JSON array of items, the line of its answer: for each item null, or why it is refused.

    A scorer that fails is no refusal: with another response it may not.

    Raises:
        SettingsError: a line is no JSON array.
    """
    for line in lines:
        with _unlogged():
            answer = json.dumps([_refusal(registry, item, max_response_chars) for item in _items(line)])
        yield answer


@contextmanager
def _unlogged() -> Iterator[None]:
    """A scorer that fails at an empty response would say so for every row."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def _items(line: str) -> list[Item | str]:
    """Each item, or what is wrong with it."""
    try:
        return [*_LINE.validate_json(line)]
    except ValidationError:
        pass
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--refusals: a line is not JSON ({error}); give an array of items on each") from None
    if not isinstance(values, list):
        raise SettingsError("--refusals: a line is no array; give an array of items on each")
    return [_item(value) for value in values]


def _item(value: object) -> Item | str:
    try:
        return Item.model_validate_json(json.dumps(value))
    except ValidationError as error:
        return first_problem(error)


def _refusal(registry: Registry, item: Item | str, max_response_chars: int) -> str | None:
    if isinstance(item, str):
        return item
    scored = too_deep(item) or scored_item(registry, item, max_response_chars=max_response_chars)
    return scored.result.detail if scored.refused else None


__all__ = ["refusals"]
