"""One score in words: what was read, what each component is, which boxes belong together, and why.

It knows an item and its explanation; it asks nobody and draws nothing.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmr1.drawn_boxes import Box, predicted, true
from mmr1.reward_program import Explanation
from mmr1_reward_server.api import Item, Outcome, TaskInfo

_WIDTH = 100
_MAX_CHARS = 600  # of what was read
_OUTCOMES = {
    Outcome.OK: "the response was read and scored",
    Outcome.INVALID_OUTPUT: "the response holds nothing to score, so its reward is the task's floor",
    Outcome.VERIFIER_ERROR: "the scorer failed, which is never the model's fault: no reward",
    Outcome.TIMEOUT: "the scorer took too long, which is never the model's fault: no reward",
}


@dataclass(frozen=True)
class Tried:
    """An item, the task that it was scored by, and what came of it. Boxes are in pixels of the original image."""

    task: TaskInfo
    item: Item
    explained: Explanation

    @cached_property
    def found(self) -> list[Box]:
        """What was read out of the response."""
        return predicted({self.task.name: self.explained.result.parsed}, self._spaces, self.task.name, self._size)

    @cached_property
    def truth(self) -> list[Box]:
        """The solution's."""
        return true(self.item.solution, self._spaces, self.task.name, self._size)

    def partner(self, box: Box) -> tuple[int, float] | None:
        """The place of the true box that one of the response was matched with, and their IoU.

        Where one box is asked for, it is that one.
        """
        if self.explained.pairs is None:
            overlap = self.explained.result.components.get("iou")
            return (0, overlap) if overlap is not None and len(self.found) == len(self.truth) == 1 else None
        return next(((pair.true, pair.iou) for pair in self.explained.pairs if pair.predicted == box.place), None)

    @property
    def _spaces(self) -> dict[str, Any]:
        return {self.task.name: self.item.params}

    @property
    def _size(self) -> tuple[float, float] | None:
        return self.item.image_size


def words(tried: Tried) -> str:
    """The whole explanation, lines of at most about a hundred characters."""
    result = tried.explained.result
    parts = [
        _entry(tried.task.name, tried.task.summary),
        "",
        _entry("response", tried.item.response),
        _entry("solution", _json(tried.item.solution)),
        *([_entry("params", _json(tried.item.params))] if tried.item.params else []),
        *([_entry("image", "{} x {} pixels".format(*tried.item.image_size))] if tried.item.image_size else []),
        "",
        _entry("outcome", f"{result.outcome.value}: {_OUTCOMES[result.outcome]}"),
        _entry("reward", "none" if result.reward is None else f"{result.reward:.6g}"),
        *(_entry(f"  {name}", f"{value:.6g}") for name, value in result.components.items()),
        _entry("read", _json(result.parsed) if result.parsed is not None else "nothing"),
        *_boxes(tried),
        *([_entry("detail", result.detail)] if result.detail else []),
        "",
        _entry("formula", tried.task.formula),
        _entry("floor", f"{tried.task.floor:g}"),
    ]
    return "\n".join(parts)


def _boxes(tried: Tried) -> list[str]:
    """A line for each box of the response and for each true one that none of them found, in pixels."""
    lines = []
    # Not of the boxes below alone: there are bounds on how many of them are shown.
    matched = {pair.true for pair in tried.explained.pairs or ()}
    for box in tried.found:
        partner = tried.partner(box)
        fate = "matches no true box" if tried.truth else ""
        if partner is not None:
            matched.add(partner[0])
            fate = f"with true box {partner[0] + 1}{_label(tried.truth, partner[0])}: IoU {partner[1]:.3f}"
        lines.append(_entry(f"  box {box.place + 1}", " ".join([_numbers(box), *filter(None, [box.label, fate])])))
    for box in tried.truth:
        fate = "" if box.place in matched or box.is_crowd else "is found by none"
        lines.append(_entry(f"  true {box.place + 1}", " ".join([_numbers(box), *filter(None, [box.label, fate])])))
    return lines


def _label(boxes: list[Box], place: int) -> str:
    label = next((box.label for box in boxes if box.place == place), "")
    return f" ({label})" if label else ""


def _numbers(box: Box) -> str:
    edges = (box.x1, box.y1) if box.is_point else (box.x1, box.y1, box.x2, box.y2)
    return f"[{', '.join(f'{edge:.5g}' for edge in edges)}]"


def _entry(name: str, text: str) -> str:
    """A name and its text, broken into lines that begin below each other. Nothing in it can steer a terminal."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    if len(shown) > _MAX_CHARS:
        shown = f"{shown[:_MAX_CHARS]} ... ({len(shown) - _MAX_CHARS} more characters)"
    lead = f"{name:<16} "
    if not shown.strip():
        return lead.rstrip()
    return textwrap.fill(shown, _WIDTH, initial_indent=lead, subsequent_indent=" " * 17, break_on_hyphens=False)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


__all__ = ["Tried", "words"]
