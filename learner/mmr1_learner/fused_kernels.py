"""On a GPU, a norm or a gated layer's product as one kernel, and matrices whose sides its matrix units can take.

Written out in transformers, a norm is half a dozen small kernels and more in the backward pass. Liger's compute the
same in one (https://github.com/linkedin/Liger-Kernel); rotary positions have theirs in fused_rotary.py. Qwen2.5-VL's
vision layers are 3420 wide, which is no multiple of 8, as a GPU's fast products want: the matrices are filled up with
zeros. Modules stay what they are, with their parameters and hooks, and compute as ever on a CPU. This file knows no
family by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1_learner.fused_rotary import fuse_rotary
from mmr1_learner.fused_vision import fuse_vision

_ALIGNED = 8  # elements: 16 bytes of bfloat16
_SILU = ("SiLU", "SiLUActivation")  # torch's, and transformers' own
_FILLED = 64  # what is filled up ends at a multiple of this: a tile of a product is as wide


def fuse_kernels(hf: nn.Module, config: RunConfig) -> None:
    """Have the model's norms, gated layers and rotary positions take such kernels wherever their input is on a GPU.

    Raises:
        ConfigurationError: the run insists on them, and there is no GPU or no Liger.
    """
    if config.fused_kernels == "none":
        return
    needed = {"a GPU": torch.cuda.is_available(), "liger-kernel": find_spec("liger_kernel") is not None}
    missing = [what for what, there in needed.items() if not there]
    if missing:
        if config.fused_kernels == "liger":
            raise ConfigurationError(
                f"fused_kernels is liger, and here is no {' and no '.join(missing)}; "
                "pip install 'mmr1-learner[cuda]' on a machine with a GPU, or leave the option out"
            )
        return
    parts: Iterator[Any] = hf.modules()
    for module in parts:
        if fuse_vision(module):
            continue
        fuse_rotary(module)
        if _is_norm(module):
            _take(module, _norm)
        elif _is_gated(module):
            _take(module, _gate)
            if config.lora_rank == 0 and module.gate_proj.out_features % _ALIGNED:
                _take(module.gate_proj, _wider)
                _take(module.up_proj, _wider)
                _take(module.down_proj, _deeper)


def _is_norm(module: nn.Module) -> bool:
    """Llama's and those of all families here: x / rms(x) in float32, then times the weight in the input's type."""
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _is_gated(module: Any) -> bool:
    """down(silu(gate(x)) * up(x))."""
    layers = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    return all(layers) and type(getattr(module, "act_fn", None)).__name__ in _SILU


def _take(module: nn.Module, forward: Callable[[Any, Tensor], Tensor]) -> None:
    """Have the module compute so what is on a GPU; hooks are called around it as before."""

    def choose(self: Any, x: Tensor) -> Tensor:
        found: Tensor = forward(self, x) if x.is_cuda else type(self).forward(self, x)
        return found

    # A method of this very module, so that a copy of it computes with its own weights.
    module.forward = MethodType(choose, module)


def _norm(self: Any, x: Tensor) -> Tensor:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Never over the gradient that comes in: who else holds it is not known here.
    found: Tensor = LigerRMSNormFunction.apply(x, self.weight, self.variance_epsilon, 0.0, "llama", False)
    return found


def _gate(self: Any, x: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    found: Tensor = self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))
    return found


def _wider(self: Any, x: Tensor) -> Tensor:
    """With zeros after its outputs: silu(0) * 0 = 0 adds nothing to what follows."""
    zeros = -self.out_features % _FILLED
    bias = None if self.bias is None else F.pad(self.bias, (0, zeros))
    return F.linear(x, F.pad(self.weight, (0, 0, 0, zeros)), bias)


def _deeper(self: Any, x: Tensor) -> Tensor:
    """Of inputs with zeros after them."""
    return F.linear(x, F.pad(self.weight, (0, -self.in_features % _FILLED)), self.bias)


__all__ = ["fuse_kernels"]
