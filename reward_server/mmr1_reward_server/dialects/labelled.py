"""Items from labels for clients that do not survive a refused request: a bad label is the verdict on its item alone.

It knows no dialect and no HTTP. What is wrong is said in the log, since such a client shows it nowhere.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..api import Item, Outcome
from ..errors import RequestError
from ..labels import Label
from ..registry import Registry, Task
from ..scoring import Scored, without_reward
from .defaults import Defaults
from .holding import Holding
from .routing import make_item, route

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An item, and what is wrong with its label. One with a fault is not to be scored: it is there for its floor."""

    item: Item
    fault: str | None = None


def read_labelled(
    registry: Registry,
    label: Any,
    respond: Callable[[Task[Any, Any]], str],
    *,
    path_task: str | None,
    default_task: str,
    name: str = "0",
) -> Labelled:
    """The item for a label of any JSON type. `respond` gives the response, as the item's task is to see it.

    A faulty label's task is that of the path, or of the label where there is such a task, or else the default.
    """
    routed, fault = Label(None, None, {}), None
    try:
        routed = route(label)
    except RequestError as error:
        fault = error.body.error.message
    asked = next(task for task in (path_task, routed.task, default_task) if task is not None)
    known = asked if asked in registry else default_task
    if fault is None:
        try:
            return Labelled(make_item(registry, routed, respond(registry[known]), tasks=(asked,), name=name))
        except RequestError as error:
            fault = error.body.error.message
    return Labelled(Item(id=name, task=known, response="", solution=None, params=routed.params), fault)


async def score_labelled(
    holding: Holding,
    defaults: Defaults,
    labelled: Sequence[Labelled],
    *,
    num_bytes: int,
    hold_seconds: float,
    gone: Callable[[], Awaitable[bool]],
) -> list[Scored]:
    """One verdict for each, in order; a fault is a verifier_error. Otherwise as `Holding.score`. Raises Overloaded."""
    sound = [one.item for one in labelled if one.fault is None]
    # There may be none: some versions of OpenRLHF send empty lists to every address but the first.
    results = await holding.score(sound, num_bytes=num_bytes, hold_seconds=hold_seconds, gone=gone) if sound else []
    scored = iter(results)
    verdicts = [next(scored) if one.fault is None else _refused(one.item, one.fault) for one in labelled]
    faulty = [(one, verdict) for one, verdict in zip(labelled, verdicts, strict=True) if one.fault is not None]
    for one, verdict in faulty:
        defaults.on_scored(one.item, verdict)
    if faulty:
        first = faulty[0][0]
        fields = {"labels": len(faulty), "of": len(labelled), "item": first.item.id, "reason": first.fault}
        logger.warning("labels are wrong: their items get the floor", extra={"fields": fields})
    return verdicts


def _refused(item: Item, fault: str) -> Scored:
    return Scored(without_reward(item, Outcome.VERIFIER_ERROR, fault), 0.0, refused=True)
