"""A vision tower's attention: one call for all windows of a length, where transformers makes one for each.

In the towers of the Qwen family tokens see only their own image, or their own window of it: at 896 x 896 pixels a layer
has 64 windows. The calls, not their arithmetic, take the time, so those of equal length go together as a batch. The
result is the same to rounding. This file knows nothing of what the images show.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Families whose tower is given its images' sizes, and attends within an image or within windows of it.
TOWERS_WITH_SIZES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# To a name with "flash" in it transformers hands all windows at once, with their boundaries.
NAME = "flash_by_window_length"


class Windows(NamedTuple):
    """Windows of one length. `rows` [num * length] are the places of their tokens; None: all, in order."""

    num: int
    length: int
    rows: Tensor | None


def batch_vision_attention(hf: Any) -> None:
    """Have the vision tower of a Hugging Face model attend this way, if its attention goes window by window."""
    config = getattr(hf.config, "vision_config", None)
    if hf.config.model_type in TOWERS_WITH_SIZES:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
        # The tower holds this object, or one of its own that was made from it.
        for one in {id(config): config, id(hf.model.visual.config): hf.model.visual.config}.values():
            one._attn_implementation = NAME


def _attention(
    _module: Any, query: Tensor, key: Tensor, value: Tensor, *, cu_seq_lens_q: Tensor, scaling: float, **_options: Any
) -> tuple[Tensor, None]:
    """Of [1, heads, L, D] with boundaries [windows + 1] in L; returns [1, L, heads, D]."""
    _, heads, _, width = query.shape
    groups, order = windows_of(cu_seq_lens_q, query.device)
    seen = []
    for group in groups:

        def apart(tensor: Tensor, group: Windows = group) -> Tensor:
            rows = tensor[0] if group.rows is None else tensor[0].index_select(1, group.rows)
            return rows.view(heads, group.num, group.length, width).transpose(0, 1)

        one = F.scaled_dot_product_attention(apart(query), apart(key), apart(value), scale=scaling)
        seen.append(one.transpose(1, 2).reshape(group.num * group.length, heads, width))
    whole = seen[0] if order is None else torch.cat(seen).index_select(0, order)
    return whole[None], None


def windows_of(boundaries: Tensor, device: torch.device) -> tuple[list[Windows], Tensor | None]:
    """The windows by length, and for each token its place among the groups' results in a row; None: as it was.

    Worked out once for the boundaries, not in every layer: to read them waits for the device, unless they are the
    host's. What is made of them is on `device`.
    """
    known = boundaries.__dict__.setdefault("_mmr1_windows", {})
    if device not in known:
        known[device] = _make_groups(boundaries, device)
    return cast(tuple[list[Windows], Tensor | None], known[device])


def _make_groups(boundaries: Tensor, device: torch.device) -> tuple[list[Windows], Tensor | None]:
    ends = boundaries.cpu().long()
    starts, lengths = ends[:-1], ends.diff()
    found = sorted({length for length in lengths.tolist() if length})
    if len(found) == 1:
        return [Windows(int((lengths > 0).sum()), found[0], None)], None
    groups, rows = [], []
    for length in found:
        those = starts[lengths == length]
        rows.append((those[:, None] + torch.arange(length)).flatten())
        groups.append(Windows(len(those), length, _on(device, rows[-1])))
    return groups, _on(device, torch.cat(rows).argsort())


def _on(device: torch.device, made: Tensor) -> Tensor:
    """A tensor of the host's there, without waiting for what is under way."""
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


__all__ = ["NAME", "TOWERS_WITH_SIZES", "Windows", "batch_vision_attention", "windows_of"]
