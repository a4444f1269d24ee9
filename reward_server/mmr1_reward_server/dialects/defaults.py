"""What the peers' routes need to be told besides the tasks: one frozen record, the same for every dialect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..api import Item
from ..registry import Registry
from ..scoring import Scored


def _ignore(item: Item, scored: Scored) -> None:
    pass


def _ignore_held(num_requests: int, num_bytes: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Defaults:
    """Limits beside the server's own, and what to do when a request does not say which task it is about.

    `max_held_requests` and `max_held_bytes` bound, for each dialect, the requests that wait for capacity (or, for ROLL,
    for their result to be fetched). `correct_from` is the smallest reward that PipelineRL is told to be correct, unless
    a label says another. `on_scored` is called once with each item and its final verdict: the app counts them there.
    `on_held` is called with how many requests, and bytes of theirs, wait for capacity more than before; negative when
    they no longer do.
    """

    default_task: str
    max_items: int = 1024
    max_held_requests: int = 4096
    max_held_bytes: int = 512 * 2**20
    correct_from: float = 0.5
    on_scored: Callable[[Item, Scored], None] = _ignore
    on_held: Callable[[int, int], None] = _ignore_held


def usual_task(registry: Registry) -> str:
    """For requests that name no task, unless the operator chose one: accuracy, or counting where that is missing."""
    return "accuracy" if "accuracy" in registry else "counting"
