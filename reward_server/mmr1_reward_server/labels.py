"""Taking a dataset's label apart: which task, which solution, which params. A label may be any JSON value.

It is the solution itself, or an object `{"task", "solution" or "text", "params", "image_size"}`, or a text that holds
such an object (datasets often store JSON as text). This file knows no HTTP and no particular task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

_PARTS = frozenset(("task", "text", "solution", "params", "image_size"))


class BadLabel(ValueError):
    """The label looks like an object of parts and is not a right one. Says why in one line."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a label says. `task` is None when it names none; `image_size` is not looked at here."""

    task: str | None
    solution: Any
    params: dict[str, Any]
    image_size: Any = None


def read_label(label: Any) -> Label:
    """An object with a `task` must have no other keys than the five. Raises BadLabel."""
    parts = _as_object(label)
    if parts is None:
        return Label(None, label, {})
    if unknown := sorted(parts.keys() - _PARTS):
        raise BadLabel(f"label: unknown key {unknown[0][:64]!r}; known are {', '.join(sorted(_PARTS))}")
    # Tables of objects fill in with null what an object does not have, so null is nothing given.
    given = [parts[name] for name in ("solution", "text") if parts.get(name) is not None]
    if len(given) > 1:
        raise BadLabel("label: it has both text and solution; give one")
    task, params = parts.get("task"), parts.get("params")
    if not isinstance(task, str | None):
        raise BadLabel("label: task must be a task's name")
    if not isinstance(params, dict | None):
        raise BadLabel("label: params must be an object")
    return Label(task, given[0] if given else None, params or {}, parts.get("image_size"))


def claimed_task(label: Any) -> str | None:
    """The task that a label names, even one that `read_label` refuses for something else in it."""
    parts = _as_object(label)
    task = None if parts is None else parts.get("task")
    return task if isinstance(task, str) else None


def _as_object(label: Any) -> dict[str, Any] | None:
    """The label as an object of parts; None when it is a solution."""
    if isinstance(label, str) and label.lstrip()[:1] == "{":
        try:
            inside = from_json(label)
        except (ValueError, TypeError):  # the latter is said of half a surrogate pair
            return None
        return inside if isinstance(inside, dict) and isinstance(inside.get("task"), str) else None
    if not isinstance(label, dict):
        return None
    if isinstance(label.get("task"), str):
        return label
    # Without a task's name only what cannot be anything else is taken apart: a solution may be an object too.
    return label if label.keys() <= _PARTS and ("solution" in label or "text" in label) else None
