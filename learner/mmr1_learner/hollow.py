"""A model without its weights, for ranks that get their share of them from rank 0.

DeepSpeed's ZeRO-3 takes each parameter from rank 0 and cuts it over the ranks, whatever the others hold. So the others
need not read the checkpoint, and the host's memory need not hold it once for each of them: a parameter here has its
shape, its type and the memory of one number. Buffers are what the modules make of them. What a checkpoint adds to its
configuration (weights that are not tied after all, adapters, another type, buffers of its own) is not here: `outline`
says what a model is, so that two ranks may find out. Knows nothing of ranks and of DeepSpeed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText


def hollow_model(path: str, dtype: torch.dtype) -> Any:
    """The model that a folder's config.json describes. Raises what transformers does when it reads that."""
    settings = AutoConfig.from_pretrained(path)
    with _parameters_nowhere():
        hf = AutoModelForImageTextToText.from_config(settings, dtype=dtype, attn_implementation="sdpa")
    made: dict[nn.Parameter, nn.Parameter] = {}  # a tied one stays one
    for module in hf.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = made.setdefault(parameter, _hollow(parameter))
    return hf


@contextmanager
def _parameters_nowhere() -> Iterator[None]:
    """What modules register inside has no memory, so that nothing is spent on making it or on drawing it at random."""
    register = nn.Module.register_parameter

    def nowhere(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = nowhere  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _hollow(parameter: nn.Parameter) -> nn.Parameter:
    one = torch.zeros((), dtype=parameter.dtype)  # without dimensions, so that every stride of what follows is 0
    return nn.Parameter(one.expand(parameter.shape), requires_grad=parameter.requires_grad)


def outline(module: nn.Module) -> str:
    """A digest of all parameters, but for their values, in their order, and of all buffers with theirs."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {parameter.requires_grad}\n".encode())
    for name, buffer in module.named_buffers():
        values = buffer.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(f"{name} {tuple(buffer.shape)} {buffer.dtype}\n".encode() + values)
    return digest.hexdigest()


def is_hollow(parameter: Tensor) -> bool:
    """Whether all of its numbers are one."""
    return parameter.numel() > 1 and not any(parameter.stride())


def hollow_copies(parameters: Iterable[nn.Parameter]) -> dict[int, Any]:
    """For `copy.deepcopy`'s memory of what it has copied: a copy of a hollow parameter is hollow, and not filled."""
    return {id(parameter): _hollow(parameter) for parameter in parameters if is_hollow(parameter)}


def fill(parameters: Iterable[nn.Parameter]) -> None:
    """Give hollow parameters memory of their own, with whatever is in it: a receiver writes there."""
    for parameter in parameters:
        if is_hollow(parameter):
            parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype)


__all__ = ["fill", "hollow_copies", "hollow_model", "is_hollow", "outline"]
