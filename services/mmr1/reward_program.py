"""Asks the reward server that is installed in this environment, which need not run: what it offers, how it scores.

Its code may not be imported here, so its program is called; it answers one question and ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from mmr1.errors import ConfigurationError
from mmr1_reward_server.api import Item, Result, TaskInfo, TaskList

_ANSWER_SECONDS = 120.0  # two on an idle machine


class Pair(BaseModel):
    """A box of the response and the true one that it was matched with, each by its place from 0."""

    predicted: int
    true: int
    iou: float


class Explanation(BaseModel):
    """One item's result. `refused`: the item itself is at fault. `pairs`: None for tasks that match nothing."""

    result: Result
    refused: bool
    pairs: list[Pair] | None


def own_tasks() -> list[TaskInfo]:
    """All tasks, with an example of each.

    Raises:
        ConfigurationError: the reward server does not start.
    """
    return TaskList.model_validate_json(ask(["--describe-tasks"])).tasks


def explain(item: Item) -> Explanation:
    """How the server scores the item.

    Raises:
        ConfigurationError: as `own_tasks`.
    """
    question: dict[str, Any] = item.model_dump(mode="json")
    return Explanation.model_validate_json(ask(["--explain", "-"], json.dumps(question)))


def ask(arguments: Sequence[str], text: str = "") -> str:
    """What the program prints when it is given `text`.

    Raises:
        ConfigurationError: it takes too long, or does not start.
    """
    command = [sys.executable, "-m", "mmr1_reward_server", *arguments]
    try:
        answered = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"the reward server does not answer within {_ANSWER_SECONDS:.0f} s; run {' '.join(command)}"
        ) from None
    if answered.returncode != 0:
        lines = answered.stderr.strip().splitlines() or [f"exit code {answered.returncode}"]
        raise ConfigurationError(f"the reward server does not start: {lines[-1]}; `make setup` installs it")
    return answered.stdout


__all__ = ["Explanation", "Pair", "ask", "explain", "own_tasks"]
