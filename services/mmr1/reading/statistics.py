"""What a dataset holds, in numbers, from one pass and in bounded memory.

How many different values there are is exact up to a few thousand and an estimate above. This file reads nothing.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Hashable
from typing import Any

_MOST_LISTED = 8
_MOST_COUNTED = 10_000  # different values that a tally remembers
_SKETCH = 4096
_SHOWN_CHARS = 30


class Distinct:
    """How many different values were added: of K smallest hashes, the largest says how densely the hashes lie.

    Z. Bar-Yossef et al., "Counting distinct elements in a data stream" (2002), algorithm 2: (K - 1) / h_K with hashes
    in (0, 1]; the standard error is 1 / sqrt(K), 1.6 % here.
    """

    def __init__(self) -> None:
        self._heap: list[int] = []  # negated: the largest of the smallest hashes comes first
        self._held: set[int] = set()

    def add(self, value: str | bytes) -> None:
        content = value.encode(errors="surrogatepass") if isinstance(value, str) else value
        hashed = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
        if hashed in self._held:
            return
        if len(self._heap) < _SKETCH:
            heapq.heappush(self._heap, -hashed)
            self._held.add(hashed)
        elif hashed < -self._heap[0]:
            self._held.discard(-heapq.heappushpop(self._heap, -hashed))
            self._held.add(hashed)

    def __str__(self) -> str:
        if len(self._heap) < _SKETCH:
            return str(len(self._heap))
        estimate = (_SKETCH - 1) * 2**64 / (1 - self._heap[0])
        digits = max(0, math.floor(math.log10(estimate)) - 2)
        return f"about {round(estimate / 10**digits) * 10**digits:,}"


class Range:
    """Smallest, mean and largest of numbers."""

    def __init__(self) -> None:
        self._count, self._sum, self._low, self._high = 0, 0.0, math.inf, -math.inf

    def add(self, value: float) -> None:
        self._count += 1
        self._sum += value
        self._low, self._high = min(self._low, value), max(self._high, value)

    def __str__(self) -> str:
        return f"{self._low:g} to {self._high:g}, mean {self._sum / self._count:.4g}"


class Tally:
    """The most common of some values, as long as there are not too many different ones."""

    def __init__(self) -> None:
        self._counts: Counter[Hashable] | None = Counter()

    def add(self, value: Hashable) -> None:
        if self._counts is not None:
            self._counts[value] += 1
            if len(self._counts) > _MOST_COUNTED:
                self._counts = None

    def __str__(self) -> str:
        """Empty if there were too many, or no value came twice."""
        common = self._counts.most_common(_MOST_LISTED) if self._counts else []
        if not common or common[0][1] == 1:
            return ""
        return ", ".join(f"{str(value)[:_SHOWN_CHARS]} ({count})" for value, count in common)


class Solutions:
    """The solutions of one task: numbers by value, texts by length, lists and mappings by number of entries."""

    def __init__(self) -> None:
        self._kinds: dict[str, Range] = {}
        self._distinct = Distinct()
        self._common = Tally()

    def add(self, solution: Any) -> None:
        number = isinstance(solution, int | float) and not isinstance(solution, bool)
        kind = "numbers" if number else "characters" if isinstance(solution, str) else "entries"
        size = solution if number else len(solution) if hasattr(solution, "__len__") else 1
        if math.isfinite(size := min(max(size, -1e300), 1e300)):
            self._kinds.setdefault(kind, Range()).add(size)
        text = str(solution)
        self._distinct.add(text)
        self._common.add(text)

    def __str__(self) -> str:
        kinds = "; ".join(f"{kind} {range_}" for kind, range_ in self._kinds.items())
        common = str(self._common)
        return f"{kinds}; {self._distinct} different" + (f"; most common: {common}" if common else "")


class Statistics:
    """Of good rows. `names_tasks`: any row at all, a bad one too, has a task of its own."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.names_tasks = False
        self._tasks: Counter[str] = Counter()
        self._solutions: dict[str, Solutions] = {}
        self._problems, self._lengths = Distinct(), Range()
        self._images, self._per_row = Distinct(), Range()
        self._num_images, self._num_embedded = 0, 0
        self._widths, self._heights, self._sizes = Range(), Range(), Tally()

    def add_row(self, problem: str, solution: Any, task: str, num_images: int) -> None:
        self.num_rows += 1
        self._tasks[task] += 1
        self._solutions.setdefault(task, Solutions()).add(solution)
        self._problems.add(problem)
        self._lengths.add(len(problem))
        self._per_row.add(num_images)

    def add_image(self, image: str | bytes, size: tuple[int, int]) -> None:
        """`image`: its path, or the bytes of an embedded one; `size`: width and height in pixels."""
        self._num_images += 1
        self._num_embedded += isinstance(image, bytes)
        self._images.add(image)
        self._widths.add(size[0])
        self._heights.add(size[1])
        self._sizes.add(f"{size[0]}x{size[1]}")

    def __str__(self) -> str:
        tasks = ", ".join(f"{task} ({count})" for task, count in self._tasks.most_common())
        embedded = f", {self._num_embedded} embedded" if self._num_embedded else ""
        sizes = str(self._sizes)
        lines = [
            f"rows       {self.num_rows}",
            f"tasks      {tasks}",
            f"problems   {self._lengths} characters; {self._problems} different",
            *(f"solutions  of {task}: {found}" for task, found in self._solutions.items()),
            f"images     {self._num_images} named, {self._images} different{embedded}; in a row {self._per_row}",
            f"pixels     width {self._widths}; height {self._heights}" + (f"; most common: {sizes}" if sizes else ""),
        ]
        return "\n".join(f"  {line}" for line in lines)


__all__ = ["Distinct", "Statistics"]
