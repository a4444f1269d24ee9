"""One item for a person: its result, and for tasks that match boxes which was matched with which. Serves nothing.

The matching is the scorer's own, asked for once more; this file matches nothing itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from . import __version__
from .api import Item, Result, TaskList, first_problem
from .registry import Registry, Task
from .rewards.detection import compare
from .rewards.detection import score as detection_score
from .scoring import scored_item
from .settings import SettingsError


class Pair(BaseModel):
    """A box of the response and a true one, each by its place from 0, and how they overlap."""

    predicted: int
    true: int
    iou: float


class Explanation(BaseModel):
    """What is printed. `refused`: the item itself is at fault, as the result's detail says.

    `pairs` is null for tasks that match no boxes, and where nothing could be scored.
    """

    result: Result
    refused: bool
    pairs: list[Pair] | None


def describe(registry: Registry) -> TaskList:
    """As GET /v1/tasks."""
    return TaskList(tasks=[task.info() for task in registry], version=__version__)


def explain(registry: Registry, item: Item, *, max_response_chars: int) -> Explanation:
    """How the item is scored. Takes as long as its scorer takes, twice."""
    scored = scored_item(registry, item, max_response_chars=max_response_chars)
    pairs = _pairs(registry[item.task], item) if scored.result.outcome == "ok" else None
    return Explanation(result=scored.result, refused=scored.refused, pairs=pairs)


def read_item(path: str) -> Item:
    """The one item of a JSON file, `-` being standard input. Raises SettingsError."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        return Item.model_validate_json(text)
    except ValidationError as error:
        raise SettingsError(
            f"--explain {path}: {first_problem(error)}; give one item as POST /v1/score takes it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--explain {path}: {error}; give the path of a JSON file") from None


def _pairs(task: Task[Any, Any], item: Item) -> list[Pair] | None:
    if task.score is not detection_score:
        return None
    compared = compare(task.read(item))
    return [
        Pair(predicted=row, true=compared.objects[column], iou=float(compared.overlaps[row, column]))
        for row, column in compared.pairs
    ]


__all__ = ["Explanation", "Pair", "describe", "explain", "read_item"]
