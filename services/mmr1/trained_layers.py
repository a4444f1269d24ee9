"""Which of a model's layers a run trains, by their names alone: of modules that are loaded, or of a folder's tensors.

A name is told apart by its parts, so transformers' names and published ones serve alike. This file opens nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError

HEAD = "lm_head"
_VISION_TOWERS = ("visual", "vision_tower", "vision_model", "multi_modal_projector", "connector")


def is_vision(name: str) -> bool:
    """Whether it belongs to the vision tower, or to what joins that to the text."""
    return any(part in _VISION_TOWERS for part in name.split("."))


def check_vision_tower(names: Iterable[str]) -> None:
    """Raises ConfigurationError when there is none among these tensors, and so nothing to freeze."""
    if not any(map(is_vision, names)):
        raise ConfigurationError(
            "freeze_vision_tower: this model's vision tower is not known by its name; leave the option out"
        )


def layers_to_adapt(linear: Sequence[str], config: RunConfig) -> list[str]:
    """Those linear layers, of all by their full names, whose last part the run asks for.

    Raises:
        ConfigurationError: a part that no layer has, the output matrix, or nothing but a vision tower that is frozen.
    """
    wanted = set(config.lora_target_modules)
    if HEAD in wanted:  # its weight is read by the loss itself, past any adapter
        raise ConfigurationError(f"lora_target_modules: {HEAD} cannot have an adapter; leave it out")
    found = [name for name in linear if name.rpartition(".")[2] in wanted]
    missing = wanted - {name.rpartition(".")[2] for name in found}
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linear} - {HEAD})
        raise ConfigurationError(
            f"lora_target_modules: this model has no linear layer {', '.join(sorted(missing))}; "
            f"it has {', '.join(known)}"
        )
    if config.freeze_vision_tower:
        found = [name for name in found if not is_vision(name)]
    if not found:
        raise ConfigurationError(
            "lora_target_modules are all in the vision tower, and freeze_vision_tower is set; leave one of them out"
        )
    return found


__all__ = ["HEAD", "check_vision_tower", "is_vision", "layers_to_adapt"]
