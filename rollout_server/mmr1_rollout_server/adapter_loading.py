"""LoRA adapters in vLLM's worker process: put in place from memory, and lifted off while base weights are loaded.

vLLM wraps each layer that may get an adapter and keeps the adapters of one model in fixed slots; here there is one
slot, and what it holds is replaced as a whole. Nothing is written to a disk. This file knows vLLM's LoRA manager; it
does not know where tensors come from, or which policy version they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import parse_fine_tuned_lora_name

# At every start it would name each layer of the vision tower, where the run has no adapters.
logging.getLogger("vllm.lora.model_manager").setLevel(logging.ERROR)


@contextmanager
def plain_layers(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model is as if it had never been wrapped: its parameters have the names that loading knows."""
    wrapped = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent._modules.items()
        if isinstance(layer, BaseLayerWithLoRA)
    ]
    for parent, name, layer in wrapped:
        parent._modules[name] = layer.base_layer
    try:
        yield
    finally:
        for parent, name, layer in wrapped:
            parent._modules[name] = layer


def renames_alone(mapper: Any) -> Any:
    """vLLM's mapper of names without what it says of fused layers, of which an adapter's file names each part.

    The method has another name in vLLM 0.26, the newest for the GPU image's torch, than in later versions.
    """
    if mapper is None:
        return None
    return mapper.get_rename_mapper() if hasattr(mapper, "get_rename_mapper") else mapper.get_unstacked_mapper()


def place(
    model: Any, adapter_id: int, rank: int, alpha: float, tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> list[str]:
    """Replace whatever adapter there is by this one. Returns the names of tensors that found no layer.

    Args:
        adapter_id: by which requests ask for it; a new one each time, for vLLM's caches go by it.
        tensors: by the names of peft's files; A [rank, in] and B [out, rank].

    Raises:
        ValueError: a name is not that of an adapter's matrix, or a layer has one of its two matrices only.
    """
    manager = model.lora_manager
    mapper = renames_alone(getattr(model, "hf_to_vllm_mapper", None))
    layers: dict[str, list[str]] = {}
    for name in tensors:
        layers.setdefault(parse_fine_tuned_lora_name(name, mapper)[0], []).append(name)
    for layer, names in layers.items():
        if len(names) != 2:
            raise ValueError(f"{layer} has {len(names)} matrices instead of A and B: {', '.join(names)}")
    known = set(manager.modules).union(*manager.packed_modules.values())
    homeless = sorted(name for layer, names in layers.items() if layer not in known for name in names)
    if homeless:
        return homeless
    described = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(layers)}
    adapter = LoRAModel.from_lora_tensors(
        adapter_id, tensors, PEFTHelper.from_dict(described), device="cpu", dtype=dtype, weights_mapper=mapper
    )
    manager.remove_all_adapters()
    manager.add_adapter(adapter)
    manager.activate_adapter(adapter_id)
    return []
