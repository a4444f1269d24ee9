"""Items from peers' labels: one that is wrong is the verdict on its item alone, which each dialect says in its own way.

No peer's client has a place for the reason, and some end their run at a refused request. So it is said in the log. It
knows no dialect and no HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ..api import Item, Outcome
from ..errors import RequestError
from ..labels import Label, claimed_task
from ..registry import Registry, Task
from ..scoring import Scored, without_reward
from .defaults import Defaults
from .holding import Holding
from .routing import make_item, route

logger = logging.getLogger(__name__)

_NOTHING: Mapping[str, Any] = MappingProxyType({})


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
    beside: Mapping[str, Any] = _NOTHING,
) -> Labelled:
    """The item for a label of any JSON type. `respond` gives the response, as the item's task is to see it.

    `task`, `params` and `image_size` of `beside`, the fields around the label, go before those within it. A faulty
    label's task is that of the path, or of the label where there is such a task, or else the default.
    """
    fault = None
    try:
        routed = route(label)
    except RequestError as error:
        routed, fault = Label(claimed_task(label), None, {}), error.body.error.message
    routed = _overlaid(routed, beside)
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
    gone: Callable[[], Awaitable[bool]] | None = None,
    tries: int = 2,
) -> list[Scored]:
    """One verdict for each, in order; a fault is a verifier_error. Otherwise as `Holding.score`. Raises Overloaded."""
    sound = [one.item for one in labelled if one.fault is None]
    # There may be none: some versions of OpenRLHF send empty lists to every address but the first.
    results: list[Scored] = []
    if sound:
        results = await holding.score(sound, num_bytes=num_bytes, hold_seconds=hold_seconds, gone=gone, tries=tries)
    scored = iter(results)
    verdicts = [next(scored) if one.fault is None else _refused(one.item, one.fault) for one in labelled]
    for one, verdict in zip(labelled, verdicts, strict=True):
        if one.fault is not None:
            defaults.on_scored(one.item, verdict)
    _log_refused(labelled, verdicts)
    return verdicts


def _log_refused(labelled: Sequence[Labelled], verdicts: Sequence[Scored]) -> None:
    """Faults, and solutions that the task itself refused: both are the dataset's, and go on until it is mended."""
    refused = [(one.item, two.result) for one, two in zip(labelled, verdicts, strict=True) if two.refused]
    if refused:
        item, result = refused[0]
        fields = {"labels": len(refused), "of": len(labelled), "item": item.id, "reason": result.detail}
        logger.warning("labels are wrong: their items have no reward of their own", extra={"fields": fields})


def _overlaid(routed: Label, beside: Mapping[str, Any]) -> Label:
    task, params, image_size = (beside.get(name) for name in ("task", "params", "image_size"))
    return replace(
        routed,
        task=task if isinstance(task, str) else routed.task,
        params=params if isinstance(params, dict) else routed.params,
        image_size=routed.image_size if image_size is None else image_size,
    )


def _refused(item: Item, fault: str) -> Scored:
    return Scored(without_reward(item, Outcome.VERIFIER_ERROR, fault), 0.0, refused=True)
