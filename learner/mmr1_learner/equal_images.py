"""The vision tower's attention over many images of one size: one call for all, where transformers makes one for each.

With hundreds of tiny pictures in a batch the calls, not their arithmetic, take the time. This file knows nothing of
what the pictures show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# To a name with "flash" in it transformers hands the whole batch with the images' boundaries.
_NAME = "flash_of_equal_images"


@contextmanager
def images_of_one_size(model: Any) -> Iterator[None]:
    """Inside, a Qwen2.5-VL whose every vision layer sees whole images may be called with images of one size only."""
    config = model.model.visual.config
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
    _module: Any, query: Tensor, key: Tensor, value: Tensor, *, cu_seq_lens_q: Tensor, scaling: float, **_options: Any
) -> tuple[Tensor, None]:
    """Of [1, heads, images * patches, D], where an image's patches see each other; [1, images * patches, heads, D]."""
    heads, length, width = query.shape[1:]
    images = len(cu_seq_lens_q) - 1

    def apart(rows: Tensor) -> Tensor:
        return rows.view(heads, images, length // images, width).transpose(0, 1)

    seen = F.scaled_dot_product_attention(apart(query), apart(key), apart(value), scale=scaling)
    return seen.transpose(1, 2).reshape(1, length, heads, width), None


__all__ = ["images_of_one_size"]
