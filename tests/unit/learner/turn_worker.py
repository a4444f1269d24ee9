"""The kernel that turns heads, run by Triton's interpreter on a CPU: a program of its own, for Triton reads this once.

Prints how far each result is from the definition, in units of the type's last place.
"""

from __future__ import annotations

import itertools
import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from mmr1_learner.fused_vision import _turn
from mmr1_learner.turn_kernel import turn_on_gpu

SHAPES = ((2, 3, 2, 8), (1, 4, 3, 12), (3, 2, 16, 80))  # windows, tokens of each, heads, width


def apart(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.float().abs().max()) * torch.finfo(expected.dtype).eps
    return float((found.float() - expected.float()).abs().max()) / scale


def main() -> None:
    drawn = torch.Generator().manual_seed(0)
    for dtype, of_angles in itertools.product((torch.float32, torch.bfloat16), repeat=2):
        for windows, length, heads, width in SHAPES:
            tokens = windows * length
            # Halves unlike, as no angles are.
            cos, sin = torch.randn(2, tokens, width, generator=drawn).to(of_angles)
            buffer = torch.randn(tokens, 3, heads, width, generator=drawn).to(dtype)
            gradient = torch.randn(windows, heads, length, width, generator=drawn).to(dtype).transpose(1, 2)
            for way in (1, -1, 0):
                for given in (buffer[:, 1].unflatten(0, (windows, length)), gradient):
                    found, expected = torch.zeros(2, tokens, 3, heads, width, dtype=dtype)
                    turn_on_gpu(given, found[:, 2], cos, sin, way)
                    _turn(given, expected[:, 2], cos, sin, way)
                    print(json.dumps([str(dtype), way, apart(found, expected)]))
                over = buffer.clone()
                both = over[:, :2].flatten(1, 2)  # where they lie: two parts are as many heads again
                turn_on_gpu(both.unflatten(0, (windows, length)), both, cos, sin, way)
                expected = buffer.clone()
                for part in range(2):
                    _turn(buffer[:, part].unflatten(0, (windows, length)), expected[:, part], cos, sin, way)
                print(json.dumps([str(dtype), way, apart(over, expected)]))


if __name__ == "__main__":
    main()
