"""Whether a gradient is no number: asked of all tensors at once, with the answer that DeepSpeed's own loop gives."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from mmr1_learner.engine import _has_overflow

ASKED = "has_overflow_partitioned_grads_serial"


def optimizer(*gradients: torch.Tensor | None) -> Any:
    """Two groups of parameters, as much of DeepSpeed's optimizer as both look at."""
    return SimpleNamespace(
        bit16_groups=[[], []],
        averaged_gradients={0: list(gradients[:2]), 1: list(gradients[2:])},
        _has_inf_or_nan=DeepSpeedZeroOptimizer._has_inf_or_nan,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("spoilt", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", range(3))
def test_it_is_what_deepspeed_finds(dtype: torch.dtype, spoilt: float | None, where: int) -> None:
    gradients = [torch.randn(5, 7).to(dtype), torch.full((3,), 3e38).to(dtype), torch.zeros(4).to(dtype)]
    if spoilt is not None:
        gradients[where].view(-1)[-1] = spoilt
    one = optimizer(gradients[0], None, *gradients[1:])
    found, expected = _has_overflow(one), getattr(DeepSpeedZeroOptimizer, ASKED)(one)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert bool(found) is bool(expected) is (spoilt is not None)


def test_deepspeed_asks_by_that_name() -> None:
    """Else what is put in its place would never be called."""
    assert ASKED in DeepSpeedZeroOptimizer.has_overflow.__code__.co_names
