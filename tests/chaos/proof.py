"""What a run's diary and its last accounts prove: every group once in the parameters it ends with, none lost, and no
version served that is another than was sent.

The diary is kept by the agent in the learner's process, apart from the files that the learner itself writes. Where the
two count the same thing, they must agree: a place is not closed because some number is large enough.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

# Reasons for which a place is closed without being trained, when no next attempt is fed with the drop.
FINAL_REASONS = ("unscored", "image", "overlong", "no_variance", "not_finite")


@dataclass(frozen=True, slots=True)
class Proof:
    """`lost` and `twice` are places of the data order. Everything but the numbers must be empty."""

    num_steps: int
    num_trained: int
    lost: tuple[int, ...]  # neither trained nor closed by a drop that the diary knows
    twice: tuple[int, ...]
    spoiled: tuple[str, ...]  # versions committed although a server had received other bytes than were sent
    miscounted: tuple[str, ...]  # where the accounts say something else than the diary, in words

    @property
    def broken(self) -> list[str]:
        return [name for name in ("lost", "twice", "spoiled", "miscounted") if getattr(self, name)]

    @property
    def holds(self) -> bool:
        return not self.broken


@dataclass(frozen=True, slots=True)
class Drop:
    """A call that drops a group. Not `certain`: its answer was lost, or the learner died in it."""

    id: str
    reason: str
    next: str | None
    certain: bool

    @property
    def closes(self) -> bool:
        return self.reason in FINAL_REASONS and self.next is None


def prove(diary: list[dict[str, Any]], ledger: dict[str, Any], own: list[dict[str, Any]]) -> Proof:
    """Of a run that has ended with exit code 0, and the accounts that it left. No prompt of it can kill a server.

    Args:
        own: the lines of proof.jsonl: which groups the run itself says that its steps trained on.
    """
    steps = history(diary)
    places = Counter(position_of(id_) for ids in steps.values() for id_ in ids)
    fed = [entry["fed"] for entry in diary if "fed" in entry] + [position_of(drop.id) for drop in drops(diary)]
    untrained = [place for place in range(max([*places, *fed], default=-1) + 1) if place not in places]
    closing = {position_of(drop.id): drop for drop in drops(diary) if drop.closes}
    return Proof(
        num_steps=len(steps),
        num_trained=places.total(),
        lost=tuple(place for place in untrained if place not in closing),
        twice=tuple(place for place, count in places.items() if count > 1),
        spoiled=spoiled_versions(diary),
        miscounted=(
            *_miscounted_steps(steps, own),
            *_miscounted_states(places.total(), ledger),
            *_miscounted_drops(drops(diary), [closing[place] for place in untrained if place in closing], ledger),
        ),
    )


def _miscounted_steps(steps: dict[int, list[str]], own: list[dict[str, Any]]) -> list[str]:
    said = {record["step"]: record["groups"] for record in own}
    wrong = [step for step in sorted({*steps, *said}) if steps.get(step) != said.get(step)]
    again = [step for step, count in Counter(record["step"] for record in own).items() if count > 1]
    return [
        *(f"step {step} by proof.jsonl: {said.get(step)}, by the diary: {steps.get(step)}" for step in wrong),
        *(f"step {step} stands in proof.jsonl more than once" for step in again),
    ]


def _miscounted_states(num_trained: int, ledger: dict[str, Any]) -> list[str]:
    wrong = [f"dead by the accounts: {ledger['dead']}"] if ledger["dead"] else []
    if ledger["pending"]:
        wrong.append(f"pending by the accounts of a run that is over: {ledger['pending']}")
    if ledger["trained"] != num_trained:
        wrong.append(f"trained by the accounts: {ledger['trained']}, by the diary: {num_trained}")
    return wrong


def _miscounted_drops(noted: list[Drop], relied: list[Drop], ledger: dict[str, Any]) -> list[str]:
    """`relied`: drops that close places which would be lost without them. The accounts must know each of these."""
    wrong = []
    for reason in sorted({drop.reason for drop in noted} | set(ledger["dropped"])):
        tried = {drop.id for drop in noted if drop.reason == reason}
        sure = {drop.id for drop in noted if drop.reason == reason and (drop.certain or drop in relied)}
        count = ledger["dropped"].get(reason, 0)
        if not len(sure) <= count <= len(tried):
            wrong.append(f"dropped as {reason} by the accounts: {count}, by the diary: {len(sure)} to {len(tried)}")
    return wrong


def final_steps(diary: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The entry of each optimizer step that the last parameters contain: a life undoes the steps after its start."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in diary:
        if "goes_on_from" in entry:
            steps = {step: kept for step, kept in steps.items() if step <= entry["goes_on_from"]}
        elif "step" in entry:
            steps[entry["step"]] = entry
    return steps


def history(diary: list[dict[str, Any]]) -> dict[int, list[str]]:
    """The groups of each step that the last parameters contain."""
    return {step: entry["ids"] for step, entry in final_steps(diary).items()}


def drops(diary: list[dict[str, Any]]) -> list[Drop]:
    """Every drop that was asked for, each id and reason once."""
    found: dict[tuple[str, str], Drop] = {}
    for entry in diary:
        if "dropping" in entry:
            id_, reason = entry["dropping"], entry["reason"]
            known = found.get((id_, reason))
            found[id_, reason] = Drop(id_, reason, entry["next"], known is not None and known.certain)
        elif "dropped" in entry:
            drop = found[entry["dropped"], entry["reason"]]
            found[drop.id, drop.reason] = Drop(drop.id, drop.reason, drop.next, certain=True)
    return list(found.values())


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


def seconds_to_step(diary: list[dict[str, Any]], after: float) -> float | None:
    """From the moment `after` to the end of the first optimizer step that began later; None: there is none yet.

    A step begins when its groups begin to be collected. One that was under way tells nothing of what came in between.
    """
    began = 0.0
    for entry in diary:
        if "begins" in entry:
            began = entry["time"]
        elif "step" in entry and began > after:
            return float(entry["time"] - after)
    return None


def moments(proof: Proof, diary: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """When each lost place was passed for good, and when each place that was trained twice was trained again."""
    steps = [(entry["time"], [position_of(id_) for id_ in entry["ids"]]) for entry in final_steps(diary).values()]
    passed = [next((time for time, ids in steps if max(ids, default=-1) > place), steps[-1][0]) for place in proof.lost]
    again = [[time for time, ids in steps for found in ids if found == place][1] for place in proof.twice]
    return passed, again


def position_of(id_: str) -> int:
    """Of a prompt id "position/attempt"."""
    return int(id_.split("/")[0])
