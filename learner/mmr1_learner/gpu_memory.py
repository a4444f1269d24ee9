"""A GPU that has no memory left for training: recognised, and said in one line with what can be done about it.

Each rank says it of its own GPU. Knows torch's errors and the options' names; what fits is for `mmr1 plan` to say.
"""

from __future__ import annotations

import os

import torch

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError

# CUDA's libraries allocate beside torch; what they say is a RuntimeError with one of these in it.
_LIBRARIES_WORDS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException, config: RunConfig) -> ConfigurationError | None:
    """The one line for a failure that came of it, also when another error has been made of it on the way up."""
    cause: BaseException | None = error
    while cause is not None and not _is_it(cause):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    return ConfigurationError(
        f"{_gpu()} has no memory left for this learner{_figures()}: {_remedies(config)}; `mmr1 plan` shows what fits"
    )


def _is_it(error: BaseException) -> bool:
    is_library = isinstance(error, RuntimeError) and any(words in str(error) for words in _LIBRARIES_WORDS)
    return isinstance(error, torch.OutOfMemoryError) or is_library


def _gpu() -> str:
    """Named as this rank's process and the machine know it."""
    gpu = f"GPU {os.environ.get('LOCAL_RANK', '0')}"
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        gpu += f" (of CUDA_VISIBLE_DEVICES {visible})"
    return f"rank {os.environ.get('RANK', '0')}: {gpu}"


def _figures() -> str:
    if not torch.cuda.is_available():
        return ""
    try:
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_allocated()
    except RuntimeError:  # a device that has failed in earnest answers nothing more
        return ""
    return f" (peak {_gib(peak)} allocated here, {_gib(free)} of {_gib(total)} free)"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def _remedies(config: RunConfig) -> str:
    """What is not done yet, the cheapest first."""
    remedies = [
        f"lower per_device_batch_size (now {config.per_device_batch_size}) and raise gradient_accumulation_steps "
        f"(now {config.gradient_accumulation_steps}) as much"
    ]
    if config.gradient_checkpointing is not True:
        remedies.append("set gradient_checkpointing to true")
    if config.fused_kernels == "none":
        remedies.append("set fused_kernels to auto")
    if config.zero_stage < 3:
        remedies.append(f"raise zero_stage (now {config.zero_stage}), with several ranks")
    remedies.append("lower lora_rank" if config.lora_rank else "set lora_rank")
    remedies.append("lower gpu_memory_utilization where a rollout server shares this GPU")
    return ", or ".join(remedies)
