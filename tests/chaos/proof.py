"""What a run's diary and its last accounts prove: every group once in the parameters it ends with, none lost, and no
version served that is another than was sent.

The diary is kept by the agent in the learner's process, apart from the files that the learner itself writes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

# Reasons for which a place is closed without being trained; any other is fed again with the next attempt.
FINAL_REASONS = ("unscored", "image", "overlong", "no_variance", "not_finite")


@dataclass(frozen=True, slots=True)
class Proof:
    """`twice` and `lost` are positions of the data order; both must be empty."""

    num_steps: int
    num_trained: int
    twice: tuple[int, ...]
    lost: int
    spoiled: tuple[str, ...]  # versions committed although a server had received other bytes than were sent

    @property
    def holds(self) -> bool:
        return not self.twice and self.lost == 0 and not self.spoiled


def history(diary: list[dict[str, Any]]) -> dict[int, list[str]]:
    """The groups of each optimizer step that the last parameters contain: a life undoes the steps after its start."""
    steps: dict[int, list[str]] = {}
    for entry in diary:
        if "goes_on_from" in entry:
            steps = {step: ids for step, ids in steps.items() if step <= entry["goes_on_from"]}
        elif "step" in entry:
            steps[entry["step"]] = entry["ids"]
    return steps


def prove(diary: list[dict[str, Any]], ledger: dict[str, Any]) -> Proof:
    """Of a run that has ended with exit code 0, and the accounts that it left."""
    steps = history(diary)
    positions = Counter(position_of(id_) for ids in steps.values() for id_ in ids)
    fed = range(max(positions, default=-1) + 1)
    untrained = sum(position not in positions for position in fed)
    closed = sum(ledger["dead"].values()) + sum(ledger["dropped"].get(reason, 0) for reason in FINAL_REASONS)
    twice = tuple(position for position, count in positions.items() if count > 1)
    # As many trained by the accounts as by the diary, or one of them is wrong.
    missing = abs(ledger["trained"] - positions.total())
    lost = max(untrained - closed, missing, ledger["pending"])
    return Proof(len(steps), positions.total(), twice, lost, spoiled_versions(diary))


def spoiled_versions(diary: list[dict[str, Any]]) -> tuple[str, ...]:
    """Versions that were committed in a try in which something else arrived than was sent, or nothing was compared."""
    spoiled, arrived = [], [False]
    for entry in diary:
        if "update" in entry:
            arrived = []
        elif "received" in entry:
            arrived.append(entry["as_sent"])
        elif "committed" in entry and not (arrived and all(arrived)):
            spoiled.append(entry["committed"])
    return tuple(spoiled)


def position_of(id_: str) -> int:
    """Of a prompt id "position/attempt"."""
    return int(id_.split("/")[0])
