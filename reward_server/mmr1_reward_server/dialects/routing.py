"""From a peer's label to an item: the rules of `labels.py`, with what is wrong said as a refusal of the request."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ..api import Item, first_problem
from ..errors import RequestError
from ..labels import BadLabel, Label, read_label
from ..registry import BadItem, Registry


def route(label: Any) -> Label:
    """Takes a label of any JSON type apart. Raises RequestError (422)."""
    try:
        return read_label(label)
    except BadLabel as error:
        raise RequestError(422, "invalid_label", str(error)) from None


def make_item(
    registry: Registry, routed: Label, response: str, *, tasks: tuple[str | None, ...], name: str = "0"
) -> Item:
    """The item for a label: its task is the first in `tasks` that is not None. Raises RequestError (422)."""
    task = next(task for task in tasks if task is not None)
    try:
        registry[task]
        return Item(
            id=name,
            task=task,
            response=response,
            solution=routed.solution,
            params=routed.params,
            image_size=routed.image_size,
        )
    except BadItem as error:
        raise RequestError(422, "no_such_task", str(error)) from None
    except ValidationError as error:
        raise RequestError(422, "invalid_label", f"label: {first_problem(error)}") from None
