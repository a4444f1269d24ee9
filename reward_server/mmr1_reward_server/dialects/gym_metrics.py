"""NeMo-Gym's summary of verified rows: means over the samples that count. It knows no HTTP and scores nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

_TASK_INDEX = "_ng_task_index"


def aggregate(responses: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each top-level number, over all rows (`agent_metrics`, `key_metrics`) and for each task's rows.

    A masked row enters no mean, since its reward measures nothing; `coverage/measured` says what share was not masked.
    """
    measured = [one for one in responses if not one.get("mask_sample")]
    by_task: dict[str, list[dict[str, Any]]] = {}
    for one in measured:
        by_task.setdefault(str(one.get(_TASK_INDEX, 0)), []).append(one)
    means = _means(measured)
    coverage = {"coverage/measured": len(measured) / len(responses)} if responses else {}
    return {
        "group_level_metrics": [
            {_TASK_INDEX: rows[0].get(_TASK_INDEX, 0), **_means(rows)} for rows in by_task.values()
        ],
        "agent_metrics": means | coverage,
        "key_metrics": means,
    }


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in _numbers(row):
            values.setdefault(name, []).append(value)
    return {f"mean/{name}": math.fsum(of) / len(of) for name, of in values.items()}


def _numbers(row: dict[str, Any]) -> Iterable[tuple[str, float]]:
    """The row's finite numbers; names with an underscore in front are the peer's own bookkeeping."""
    for name, value in row.items():
        # Beyond these a sum of many could leave what a float holds.
        if name.startswith("_") or name == "mask_sample" or not isinstance(value, bool | int | float):
            continue
        if abs(value) < 1e300:
            yield name, float(value)
