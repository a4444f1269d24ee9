"""What of a policy is trained: everything, all but the vision tower, or low-rank adapters (LoRA, arXiv 2106.09685).

Adapters are peft's. A layer's weight with them is W + (lora_alpha / lora_rank) B A (section 4.1); under the base's own
names this is what samplers and exported folders get. The reference is the same model with its adapters switched off.
Knows names and modules; neither losses nor DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from mmr1.config import RunConfig
from mmr1.trained_layers import check_vision_tower, is_vision, layers_to_adapt

_ADAPTER = "default"
_BASE = ".base_layer."
_DOWN, _UP = f"lora_A.{_ADAPTER}.weight", f"lora_B.{_ADAPTER}.weight"


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor under the base model's name, and the parameters that make it."""

    name: str
    weight: nn.Parameter
    down: nn.Parameter | None = None  # A: [rank, in]
    up: nn.Parameter | None = None  # B: [out, rank]
    scale: float = 0.0

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [part for part in (self.weight, self.down, self.up) if part is not None]

    def merged(self) -> Tensor:
        """W + scale B A, in the dtype of W, made in float32. All parameters must be whole."""
        if self.down is None or self.up is None:
            return self.weight.data
        return merge(self.weight.data, self.down.data, self.up.data, self.scale)


def merge(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale B A [out, in], in the dtype and on the device of W, made in float32."""
    change = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
    return (weight.float() + scale * change).to(weight.dtype)


def choose_trainable(hf: nn.Module, config: RunConfig) -> None:
    """Freeze what the run does not train, and add adapters if it trains those. In place.

    Raises:
        ConfigurationError: the model has no vision tower that can be told apart, or no layer of the given names.
    """
    if config.freeze_vision_tower:
        check_vision_tower(name for name, _ in hf.named_parameters())
        for name, parameter in hf.named_parameters():
            parameter.requires_grad_(not is_vision(name))
    if config.lora_rank:
        _add_adapters(hf, config)


def _add_adapters(hf: nn.Module, config: RunConfig) -> None:
    hf.requires_grad_(False)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft only multiplies and divides it
        lora_dropout=config.lora_dropout,
        target_modules=_targets(hf, config),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # every rank draws the same A; B starts at 0
        inject_adapter_in_model(lora, hf, _ADAPTER)


def _targets(hf: nn.Module, config: RunConfig) -> list[str]:
    """The full names of the linear layers whose last part is asked for."""
    return layers_to_adapt([name for name, module in hf.named_modules() if isinstance(module, nn.Linear)], config)


def has_adapters(module: nn.Module) -> bool:
    """Whether `choose_trainable` has added adapters."""
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """The base model inside: its adapters add nothing. What is trained does not change."""
    layers: list[Any] = [part for part in module.modules() if isinstance(part, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True  # its public switch also changes what requires a gradient
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def sources(hf: nn.Module) -> list[Source]:
    """Every tensor of the base model, by its own name and in its own order; a tied one appears once."""
    parameters = dict(hf.named_parameters())
    layers: dict[str, Any] = dict(hf.named_modules())
    found = []
    for name, parameter in parameters.items():
        layer, base, rest = name.partition(_BASE)
        down, up = parameters.get(f"{layer}.{_DOWN}"), parameters.get(f"{layer}.{_UP}")
        if base and rest == "weight" and down is not None and up is not None:
            scale = float(layers[layer].scaling[_ADAPTER])
            found.append(Source(f"{layer}.weight", parameter, down, up, scale))
        elif not is_adapter(name):
            found.append(Source(f"{layer}.{rest}" if base else name, parameter))
    return found


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is an adapter's and not the base model's."""
    return name.endswith((_DOWN, _UP))


def file_name(name: str) -> str:
    """What peft's files, and vLLM, call an adapter's parameter of that name in the model."""
    return f"base_model.model.{name.replace(f'.{_ADAPTER}', '')}"


def save_adapters(tensors: dict[str, Tensor], hf: nn.Module, config: RunConfig, folder: Path) -> None:
    """The adapters alone, as peft and vLLM load them beside the base model.

    Args:
        tensors: the whole adapter parameters by their names in `hf`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {file_name(name): tensor for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapted = sorted(name for name, part in hf.named_modules() if isinstance(part, BaseTunerLayer))
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=adapted,
        base_model_name_or_path=config.model,
    )
    fields: dict[str, Any] = lora.to_dict()  # type: ignore[no-untyped-call]
    document = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    (folder / "adapter_config.json").write_text(json.dumps({**document, "inference_mode": True}, indent=2))
