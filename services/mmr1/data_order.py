"""Which problem each position of a run's data order takes.

Any position is found at once, without a stored shuffle and without the positions before it, and the same seed gives the
same order for ever: a run that resumes, and a place that Redis has forgotten, need nothing but their number. This file
reads no dataset.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

LONGEST_CYCLE = 1000


class Order(Protocol):
    """Positions from 0 on to indices into a list of problems."""

    def index(self, position: int) -> int: ...


class DataOrder:
    """Every epoch is another shuffle of all problems.

    A position is mapped by a keyed permutation (a Feistel network, walked until it lands inside the range).
    """

    ROUNDS = 4

    def __init__(self, num_problems: int, seed: int | str) -> None:
        if num_problems < 1:
            raise ValueError("an order needs at least one problem")
        self.num_problems = num_problems
        self.seed = seed
        self._half_bits = max(1, math.ceil((num_problems - 1).bit_length() / 2))

    def epoch(self, position: int) -> int:
        """How often all problems were taken before `position`."""
        return position // self.num_problems

    def index(self, position: int) -> int:
        """The index into the list of problems, in [0, num_problems), for a position from 0 on."""
        epoch, value = divmod(position, self.num_problems)
        value = self._permute(epoch, value)
        while value >= self.num_problems:
            value = self._permute(epoch, value)
        return value

    def _permute(self, epoch: int, value: int) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = value >> self._half_bits, value & mask
        for turn in range(self.ROUNDS):
            key = f"{self.seed}/{epoch}/{turn}/{right}".encode()
            digest = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())
            left, right = right, left ^ (digest & mask)
        return left << self._half_bits | right


class WeightedOrder:
    """Tasks by weight, and of each task its own problems, epoch by epoch.

    Positions come in cycles of as many slots as the weights add up to, in whole numbers; each task has its weight's
    slots of every cycle, shuffled anew. So a task's share is exact in each cycle, and which of its problems a position
    takes follows from the number of cycles before it.

    Args:
        indices: by task, the indices of its problems.
        weights: by task, the share of positions, relative to the others; 0 leaves a task out.
    """

    def __init__(self, indices: Mapping[str, Sequence[int]], weights: Mapping[str, float], seed: int) -> None:
        slots = slots_of({task: weights[task] for task in sorted(indices)})
        self._tasks = [
            (num_slots, indices[task], DataOrder(len(indices[task]), f"{seed}/{task}"))
            for task, num_slots in slots.items()
        ]
        self._cycles = DataOrder(sum(slots.values()), f"{seed}/tasks")

    def index(self, position: int) -> int:
        """The index into the list of problems for a position from 0 on."""
        cycle, slot = self._cycles.epoch(position), self._cycles.index(position)
        for num_slots, indices, order in self._tasks:
            if slot < num_slots:
                return indices[order.index(cycle * num_slots + slot)]
            slot -= num_slots
        raise AssertionError("a cycle has as many slots as its tasks")


def slots_of(weights: Mapping[str, float]) -> dict[str, int]:
    """The weights above 0 as whole numbers in the same ratio, or the nearest that add up to LONGEST_CYCLE."""
    exact = {task: Fraction(str(weight)) for task, weight in weights.items() if weight > 0}
    if not exact:
        raise ValueError("no problem is of a task with a weight above 0")
    total = sum(exact.values(), Fraction())
    common = math.lcm(*(weight.denominator for weight in exact.values()))
    unit = Fraction(math.gcd(*(int(weight * common) for weight in exact.values())), common)
    if total / unit > LONGEST_CYCLE:
        unit = total / LONGEST_CYCLE
    return {task: max(1, round(weight / unit)) for task, weight in exact.items()}


__all__ = ["DataOrder", "Order", "WeightedOrder", "slots_of"]
