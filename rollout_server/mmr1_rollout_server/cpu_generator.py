"""Lets seeded requests survive on the CPU: vLLM rewinds a request's generator by an offset that CPU generators lack.

It does so when a prompt is prefilled in pieces and the token sampled after an early piece is thrown away; on a CPU that
ends the engine, and every request with it ("CPU Generator does not use offset", seen with 0.32). Here the rewinding is
left out: the thrown-away draw stays drawn, so a completion is as random as before, but its seed repeats it only when
the prompt is cut the same way again. Runs in vLLM's worker process; knows nothing of prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.worker import gpu_model_runner


class CpuGenerator(torch.Generator):
    """A CPU generator that answers to an offset and ignores it."""

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        """Deliberately without effect."""
        return self


def install() -> None:
    """Give every new request of this process a CpuGenerator. Does nothing on an accelerator."""
    if not current_platform.is_cpu() or getattr(gpu_model_runner.CachedRequestState, "has_cpu_generator", False):
        return

    class RequestState(gpu_model_runner.CachedRequestState):  # type: ignore[misc]
        has_cpu_generator = True
        generator: torch.Generator | None

        def __init__(self, *arguments: Any, **fields: Any) -> None:
            super().__init__(*arguments, **fields)
            if self.generator is not None:
                generator = CpuGenerator(device="cpu")
                generator.set_state(self.generator.get_state())
                self.generator = generator

    gpu_model_runner.CachedRequestState = RequestState
