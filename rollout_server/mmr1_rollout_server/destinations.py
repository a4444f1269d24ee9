"""Where each tensor of an update goes inside vLLM's fused parameters, so that later updates need no weight loader.

vLLM's loaders are Python and take longer for the 824 tensors of a 3B model than a GPU takes to copy them. Here they run
once with their copies caught instead of made, which tells where every element goes; after that a bucket is a handful of
grouped copies, each of them accounted for. Only for parameters that are used as a checkpoint has them: not on a CPU,
which packs them, and not when they are quantised. What does not fit is refused, and vLLM's layerwise reload is taken
instead.
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


# Where a parameter's elements are: address, how many, of what type, and whether in one piece. The memory that was found
# is held on to by the copies' destinations, so nothing else can get its address.
Place = tuple[int, int, torch.dtype, bool]


class Destinations:
    """The copies of every tensor of one manifest, and the account of those that an update has made.

    Args:
        due: of each destination, by its address: the parameter that it is of, and how many elements it takes.
        parameters: where the engine's parameters are, by name.
    """

    def __init__(
        self, copies: dict[str, list[Copy]], due: dict[int, tuple[str, int]], parameters: dict[str, Place]
    ) -> None:
        self.copies = copies
        self._due = due
        self._parameters = parameters
        self._written: Counter[int] = Counter()

    def are_live(self, parameters: dict[str, Tensor]) -> bool:
        """Whether these, all that the engine has, still are the memory that was found."""
        return places(parameters) == self._parameters

    def begin(self) -> None:
        """A new update: nothing is written."""
        self._written.clear()

    def write(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        """Copy these tensors to where they belong, in few launches, and account for what was copied."""
        written, pieces = self.pairs(weights)
        if written:
            torch._foreach_copy_(written, pieces)
        for place in written:
            self._written[place.data_ptr()] += place.numel()

    def pairs(self, weights: Sequence[tuple[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        """Pieces of parameters, and the pieces of these tensors that belong there."""
        belongs, pieces = [], []
        for name, tensor in weights:
            for copy in self.copies[name]:
                belongs.append(copy.destination)
                pieces.append(tensor.as_strided(copy.size, copy.stride, tensor.storage_offset() + copy.offset))
        return belongs, pieces

    def unwritten(self) -> set[str]:
        """Parameters of which a piece was not written since `begin`, or short, or more than once."""
        return {name for address, (name, size) in self._due.items() if self._written[address] != size}


def places(parameters: dict[str, Tensor]) -> dict[str, Place]:
    """Where they are now. Asks no device, and runs at each update: it does little for each of hundreds."""
    return {
        name: (tensor.data_ptr(), tensor.numel(), tensor.dtype, tensor.is_contiguous())
        for name, tensor in parameters.items()
    }


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
    try:
        due = _due(model, copies, elements)
    except ValueError:
        return None
    return Destinations(copies, due, places(dict(model.named_parameters())))


def _due(
    model: nn.Module, copies: dict[str, list[Copy]], elements: Callable[[nn.Module], int]
) -> dict[int, tuple[str, int]]:
    """What an update must write: each element that a checkpoint holds, by the accounts of each layer, once.

    Raises:
        ValueError: the copies do other than this.
    """
    targets = [copy.destination for each in copies.values() for copy in each if copy.destination.numel()]
    by_memory: dict[int, list[Tensor]] = {}
    for target in targets:
        by_memory.setdefault(target.untyped_storage().data_ptr(), []).append(target)
    due: dict[int, tuple[str, int]] = {}
    seen: set[tuple[int, int]] = set()
    for prefix, layer in model.named_modules():
        own = {name: tensor for name, tensor in layer._parameters.items() if tensor is not None and tensor.numel()}
        memory = {(tensor.data_ptr(), tensor.numel()) for tensor in own.values()}
        if not own or memory <= seen:  # a tied parameter counts once
            continue
        seen |= memory
        num_written = 0
        for name, tensor in own.items():
            inside = [each for each in by_memory.get(tensor.untyped_storage().data_ptr(), ()) if _is_in(each, tensor)]
            num_written += num_covered(tensor, inside)
            full_name = f"{prefix}.{name}" if prefix else name
            due.update((each.data_ptr(), (full_name, each.numel())) for each in inside)
        if num_written != elements(layer):
            raise ValueError(f"{prefix}: {num_written} elements are written, a checkpoint holds {elements(layer)}")
    if len(due) != len(targets):
        raise ValueError("something that is no parameter is written, or one piece twice")
    return due


def _is_in(piece: Tensor, parameter: Tensor) -> bool:
    begin, end = _span(parameter)
    first, last = _span(piece)
    return begin <= first and last <= end


def _span(tensor: Tensor) -> tuple[int, int]:
    """Its addresses, in bytes, from the first to behind the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def num_covered(parameter: Tensor, pieces: Sequence[Tensor]) -> int:
    """How many of the parameter's elements these pieces of it are; they must be its first ones, each of them once.

    What may be left over is at the end: vLLM rounds the rows of a vocabulary up.

    Raises:
        ValueError: the pieces overlap, or leave a hole; or the parameter does not lie in one piece.
    """
    if not parameter.is_contiguous():
        raise ValueError("a parameter does not lie in one piece")
    if all(piece.is_contiguous() for piece in pieces):
        end = _span(parameter)[0]
        for begin, behind in sorted(map(_span, pieces)):
            if begin != end:
                raise ValueError("pieces overlap, or leave a hole")
            end = behind
        return (end - parameter.data_ptr()) // parameter.element_size()
    # Pieces that are cut by columns lie between each other: count for each element, in the host's memory.
    counts = torch.zeros(parameter.numel(), dtype=torch.uint8, device="cpu")
    for piece in pieces:
        first = (piece.data_ptr() - parameter.data_ptr()) // parameter.element_size()
        counts.as_strided(piece.shape, piece.stride(), first).add_(1)
    num_elements = sum(piece.numel() for piece in pieces)
    if not bool((counts[:num_elements] == 1).all()):
        raise ValueError("pieces overlap, or leave a hole")
    return num_elements
