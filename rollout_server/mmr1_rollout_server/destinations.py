"""Where each tensor of an update goes inside vLLM's fused parameters, so that later updates need no weight loader.

vLLM's loaders are Python and take longer for the 824 tensors of a 3B model than a GPU takes to copy them. Here they run
once with their copies caught instead of made, which tells where every element goes; after that a bucket is a handful of
grouped copies. Only for parameters that are used as a checkpoint has them: not on a CPU, which packs them, and not when
they are quantised. What does not fit is refused, and vLLM's layerwise reload is taken instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmr1.records import TensorSpec


@dataclass(frozen=True, slots=True)
class Copy:
    """A piece of one tensor: how it lies there, and the piece of a parameter where it goes."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    destination: Tensor


class Destinations:
    """The copies of every tensor of one manifest, bucket by bucket in its order."""

    def __init__(self, copies: dict[str, list[Copy]]) -> None:
        self._copies = copies

    def write(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        """Copy these tensors to where they belong, in few launches."""
        places, pieces = [], []
        for name, tensor in weights:
            for copy in self._copies[name]:
                places.append(copy.destination)
                pieces.append(tensor.as_strided(copy.size, copy.stride, tensor.storage_offset() + copy.offset))
        torch._foreach_copy_(places, pieces)


class _Caught(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down the copies from one tensor's memory instead of making them, and makes no other into `kept`."""

    def __init__(self, kept: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept  # addresses of the model's own memory
        self.source: Tensor | None = None
        self.copies: list[Copy] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and self.source is not None:
            destination, piece = args[0], args[1]
            if piece.untyped_storage().data_ptr() == self.source.untyped_storage().data_ptr():
                if piece.dtype != destination.dtype or piece.shape != destination.shape:
                    raise ValueError("a weight is converted or spread out while it is loaded")
                self.copies.append(
                    Copy(tuple(piece.shape), piece.stride(), piece.storage_offset(), destination.detach())
                )
                return destination
            if destination.untyped_storage().data_ptr() in self._kept:
                raise ValueError("a weight is made anew while it is loaded")
        return func(*args, **(kwargs or {}))


def find_destinations(
    model: nn.Module, specs: Sequence[TensorSpec], device: torch.device, elements: Callable[[nn.Module], int]
) -> Destinations | None:
    """Ask the model's loaders where these tensors go; the model stays as it is. None: not all of it can be told.

    Args:
        elements: of a layer's own parameters, how many a checkpoint holds.
    """
    kept = (*model.parameters(), *model.buffers())
    caught = _Caught({tensor.untyped_storage().data_ptr() for tensor in kept})
    copies: dict[str, list[Copy]] = {}
    try:
        for spec in specs:
            source = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
            caught.source, caught.copies = source, []
            with torch.no_grad(), caught:
                model.load_weights(iter([(spec.name, source)]))  # type: ignore[operator]
            if not caught.copies:
                return None
            copies[spec.name] = caught.copies
    except (ValueError, RuntimeError, KeyError):
        return None
    return Destinations(copies) if _is_whole(model, copies, elements) else None


def _is_whole(model: nn.Module, copies: dict[str, list[Copy]], elements: Callable[[nn.Module], int]) -> bool:
    """Whether every element that a checkpoint holds is written, by the accounts of each layer."""
    written: Counter[int] = Counter()
    for each in copies.values():
        for copy in each:
            written[copy.destination.untyped_storage().data_ptr()] += copy.destination.numel()
    seen: set[int] = set()
    for layer in model.modules():
        own = [tensor for tensor in layer._parameters.values() if tensor is not None]
        memory = {tensor.untyped_storage().data_ptr() for tensor in own}
        if not own or memory <= seen:  # a tied parameter counts once
            continue
        seen |= memory
        if sum(written[pointer] for pointer in memory) != elements(layer):
            return False
    return True
