"""Whole parameters, whether or not DeepSpeed's ZeRO-3 has cut them over the ranks.

A cut parameter is an empty tensor whose true shape and share hang on it as `ds_shape` and `ds_tensor`. To see it whole
every rank must gather it, in the same order; what is seen is gone afterwards, so copies are made. This file knows no
model and no optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import deepspeed
import torch
from torch import Tensor, nn


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 holds it."""
    return hasattr(parameter, "ds_id")


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """The shape of the whole parameter."""
    return tuple(parameter.ds_shape if is_partitioned(parameter) else parameter.shape)  # type: ignore[attr-defined]


def bytes_of(parameter: Tensor) -> int:
    """The size of the whole parameter, in bytes."""
    return math.prod(shape_of(parameter)) * parameter.element_size()


@contextmanager
def gathered(parameters: Sequence[Tensor], *, change: bool = False) -> Iterator[None]:
    """The parameters' data are whole inside; every rank enters. With `change`, rank 0's changes are everyone's after.

    A parameter that stays whole on every rank (DeepSpeed keeps small ones so) is gathered again by the next forward.
    """
    if not any(is_partitioned(parameter) for parameter in parameters):
        yield
        return
    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if change else None):
        yield


def change_whole(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Give the parameters these whole values; every rank calls it, and rank 0's values count for partitioned ones."""
    with gathered(parameters, change=True), torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data.copy_(value)
