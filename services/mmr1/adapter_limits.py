"""What vLLM can take when adapters alone are sent (`lora_updates: adapter`), known before any engine loads.

Facts about vLLM's LoRA support and about families; imports neither vLLM nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES

if TYPE_CHECKING:
    from mmr1.config import RunConfig

ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
_MERGED = "leave lora_updates at merged"


def engine_rank(lora_rank: int) -> int:
    """The smallest of vLLM's ranks that holds adapters of `lora_rank`. Raises StopIteration above the largest."""
    return next(rank for rank in ENGINE_RANKS if rank >= lora_rank)


def check_adapter_updates(lora_rank: int, freeze_vision_tower: bool) -> None:
    """Refuse adapters that vLLM could not apply.

    Raises:
        ValueError: there are none, they are too large, or some could be in the vision tower.
    """
    if not lora_rank:
        raise ValueError(f"lora_updates adapter needs adapters, and lora_rank is 0; set lora_rank, or {_MERGED}")
    if lora_rank > ENGINE_RANKS[-1]:
        raise ValueError(
            f"lora_updates adapter: vLLM takes ranks up to {ENGINE_RANKS[-1]}, and lora_rank is {lora_rank}; "
            f"lower it, or {_MERGED}"
        )
    if not freeze_vision_tower:
        raise ValueError(
            "lora_updates adapter: the rollout server applies adapters in the language model alone; "
            f"set freeze_vision_tower, or {_MERGED}"
        )


def check_adapter_family(config: RunConfig, model_type: str) -> None:
    """Refuse a family whose adapters the rollout server has not been seen to apply.

    Raises:
        ConfigurationError: it is none of those.
    """
    family = FAMILIES.get(model_type)
    if config.sends_adapters and (family is None or not family.takes_adapters):
        known = ", ".join(name for name, family in FAMILIES.items() if family.takes_adapters)
        raise ConfigurationError(
            f"lora_updates adapter: the rollout server is not known to apply adapters to a {model_type}, only to "
            f"{known}; {_MERGED}"
        )
