"""From a peer's label, which may be any JSON value, to an item: which task, which solution, which params.

A label is the solution itself, or an object `{"task", "solution" or "text", "params", "image_size"}`, or a text that
holds such an object (datasets often store JSON as text). It decides nothing about scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from ..api import Item, first_problem
from ..registry import BadItem, Registry
from .exchange import Refusal

_PARTS = frozenset(("task", "text", "solution", "params", "image_size"))


@dataclass(frozen=True, slots=True)
class Routed:
    """What a label says. `task` is None when it names none."""

    task: str | None
    solution: Any
    params: dict[str, Any]
    image_size: Any = None


def read_label(label: Any) -> Routed:
    """Takes a label apart. An object with a `task` must have no other keys than the five. Raises Refusal (422)."""
    parts = _as_object(label)
    if parts is None:
        return Routed(None, label, {})
    if unknown := sorted(parts.keys() - _PARTS):
        raise Refusal(
            422, "invalid_label", f"label: unknown key {unknown[0][:64]!r}; known are {', '.join(sorted(_PARTS))}"
        )
    if "text" in parts and "solution" in parts:
        raise Refusal(422, "invalid_label", "label: it has both text and solution; give one")
    if not isinstance(parts.get("task"), str | None):
        raise Refusal(422, "invalid_label", "label: task must be a task's name")
    params = parts.get("params") or {}
    if not isinstance(params, dict):
        raise Refusal(422, "invalid_label", "label: params must be an object")
    return Routed(parts.get("task"), parts.get("solution", parts.get("text")), params, parts.get("image_size"))


def make_item(
    registry: Registry, routed: Routed, response: str, *, tasks: tuple[str | None, ...], name: str = "0"
) -> Item:
    """The item for a label: its task is the first in `tasks` that is not None. Raises Refusal (422)."""
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
        raise Refusal(422, "no_such_task", str(error)) from None
    except ValidationError as error:
        raise Refusal(422, "invalid_label", f"label: {first_problem(error)}") from None


def _as_object(label: Any) -> dict[str, Any] | None:
    """The label as an object of parts; None when it is a solution."""
    if isinstance(label, str) and label.lstrip()[:1] == "{":
        try:
            inside = from_json(label)
        except ValueError:
            return None
        return inside if isinstance(inside, dict) and isinstance(inside.get("task"), str) else None
    if not isinstance(label, dict):
        return None
    if isinstance(label.get("task"), str):
        return label
    # Without a task's name only what cannot be anything else is taken apart: a solution may be an object too.
    return label if label.keys() <= _PARTS and ("solution" in label or "text" in label) else None
