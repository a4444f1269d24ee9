"""One call of the model: token ids, which token sees which, positions, and the tensors of the images.

Two layouts lead here. In shared rows several groups may lie in one row, each token sees its own prompt and its own
completion, and positions are given. In padded rows the model makes positions itself, from a plain mask. This file knows
tensors; it knows no prompts, completions or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from mmr1_learner.prefix_attention import in_place_of_mask
from mmr1_learner.stretches import Stretches, stretches_of

PADDING = -1
PROMPT = 0


@dataclass(frozen=True, slots=True)
class ModelCall:
    """The model's arguments, but for the mask, which is made where it is used: it has L x L elements a row."""

    input_ids: Tensor  # [B, L]
    owners: Tensor  # [B, L] index of the group that a token belongs to, or PADDING
    segments: Tensor  # [B, L] PADDING, PROMPT, or 1.. for the completions of the group
    position_ids: Tensor | None  # [3, B, L] or [B, L]; None: the model counts, one completion a row
    images: dict[str, Tensor]  # pixels and their sizes, by the names under which the model takes them
    token_types: dict[str, Tensor]  # [B, L] each
    derived: dict[str, Tensor] = field(default_factory=dict)  # what the model would make of the images' sizes
    on_host: frozenset[str] = frozenset()  # of both: what the model reads number by number, wherever it computes
    stretches: Stretches | None = None  # of shared rows

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> ModelCall:
        """Move to `device`, but for what stays with the host; pixels become `dtype`, if one is given."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))
        if dtype is None:
            return moved
        pixels = {name: t.to(dtype) if t.is_floating_point() else t for name, t in moved.images.items()}
        return replace(moved, images=pixels)

    def pinned(self) -> ModelCall:
        """In page-locked memory."""
        return self._each(Tensor.pin_memory)

    def with_stretches(self) -> ModelCall:
        """The same, of shared rows, with what attention needs that takes no mask."""
        return replace(self, stretches=stretches_of(self.owners, self.segments, PROMPT, PADDING))

    def _each(self, change: Callable[[Tensor], Tensor]) -> ModelCall:
        """The same with every tensor changed that does not stay with the host."""
        changed: dict[str, Any] = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, Tensor):
                changed[spec.name] = change(value)
            elif isinstance(value, Stretches):
                changed[spec.name] = value.each(change)
            elif isinstance(value, dict):
                changed[spec.name] = {
                    name: tensor if name in self.on_host else change(tensor) for name, tensor in value.items()
                }
        return replace(self, **changed)

    def arguments(self, dtype: torch.dtype, by_stretch: bool = False) -> dict[str, Any]:
        """Keyword arguments of a Hugging Face model's forward.

        Args:
            dtype: of the mask of shared rows.
            by_stretch: the model attends in them without one (prefix_attention.py).
        """
        found: dict[str, Any] = {"input_ids": self.input_ids, **self.images, **self.derived, **self.token_types}
        if self.position_ids is None:
            return {**found, "attention_mask": (self.segments != PADDING).long()}
        if by_stretch and self.stretches is not None:
            mask = in_place_of_mask(self.stretches, dtype)
        else:
            mask = attention_mask(self.owners, self.segments, dtype)
        return {**found, "attention_mask": mask, "position_ids": self.position_ids}


def attention_mask(owners: Tensor, segments: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask [B, 1, L, L]: a token sees earlier tokens of its group's prompt and of its own completion.

    Padding sees padding, so no row of the softmax is empty.
    """
    length = segments.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same_group = owners[:, :, None] == owners[:, None, :]
    same_segment = segments[:, :, None] == segments[:, None, :]
    prompt = (segments == PROMPT)[:, None, :]
    visible = earlier[None] & same_group & (same_segment | prompt)
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def place(lengths: Sequence[int], bound: int) -> list[tuple[int, int]]:
    """(row, start) of each length, so that no row ends past `bound`: longest first, each where it first fits.

    Raises:
        ValueError: a length is above the bound.
    """
    if max(lengths) > bound:
        raise ValueError(f"a length of {max(lengths)} does not fit into rows of {bound}")
    places = [(0, 0)] * len(lengths)
    filled: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, used in enumerate(filled) if used + lengths[index] <= bound), len(filled))
        if row == len(filled):
            filled.append(0)
        places[index] = (row, filled[row])
        filled[row] += lengths[index]
    return places
