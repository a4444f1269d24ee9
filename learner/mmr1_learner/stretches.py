"""Where shared rows' prompts and completions lie, as boundaries: what attention needs that computes no mask.

A stretch is what attends within itself: a prompt, a completion, or the padding at the end of a row. It is worked out on
the host with the rows, for a GPU would have to be waited for. This file knows places and no tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Stretches(NamedTuple):
    """Of rows [B, L]; a place is an index into the flattened B * L, and boundaries are int32."""

    ends: Tensor  # [stretches + 1]
    longest: int  # this and the others are upper bounds
    asking: Tensor  # [C] places of the completions' tokens, those of a group together
    asking_ends: Tensor  # [groups + 1] boundaries in them
    most_asking: int
    asked: Tensor  # [P] places of the prompts' tokens, groups in the same order
    asked_ends: Tensor  # [groups + 1]
    most_asked: int

    def each(self, change: Callable[[Tensor], Tensor]) -> Stretches:
        """The same with every tensor changed."""
        tensors: dict[str, Any] = {
            name: change(part) for name, part in self._asdict().items() if isinstance(part, Tensor)
        }
        return self._replace(**tensors)


def stretches_of(owners: Tensor, segments: Tensor, prompt: int, padding: int) -> Stretches:
    """Of rows [B, L] whose tokens belong to groups `owners` and to segments of these, a prompt before its completions.

    Every group has a prompt and lies in one row in one piece; at least one has a completion.
    """
    flat_owners, flat = owners.flatten(), segments.flatten()
    begins = torch.ones_like(segments, dtype=torch.bool)  # each row begins one
    begins[:, 1:] = (segments.diff() != 0) | (owners.diff() != 0)
    ends = _with_end(begins.flatten().nonzero()[:, 0], flat.numel())
    asked = (flat == prompt).nonzero()[:, 0]
    asking = ((flat != prompt) & (flat != padding)).nonzero()[:, 0]
    groups, asked_counts = torch.unique_consecutive(flat_owners[asked], return_counts=True)
    asking_counts = flat_owners[asking].bincount(minlength=int(groups.max()) + 1)[groups]
    asks = asking_counts > 0  # the others have no completions
    asked, asked_counts = asked[asks.repeat_interleave(asked_counts)], asked_counts[asks]
    asking_counts = asking_counts[asks]
    return Stretches(
        ends,
        _most(ends.diff()),
        asking,
        _boundaries(asking_counts),
        _most(asking_counts),
        asked,
        _boundaries(asked_counts),
        _most(asked_counts),
    )


def _with_end(starts: Tensor, end: int) -> Tensor:
    return torch.cat([starts, starts.new_tensor([end])]).int()


def _boundaries(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def _most(counts: Tensor) -> int:
    """At least 2: a kernel that is told of single queries lays them out in another way."""
    return max(2, int(counts.max()))


__all__ = ["Stretches", "stretches_of"]
