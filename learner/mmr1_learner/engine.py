"""DeepSpeed's engine around the policy: optimizer, and configuration derived from the run's.

It knows no loss and no plan; what a step does with the engine is the trainer's business. What lies in the engine's
optimizer, by parameter, is known to training_state.py.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from mmr1.config import RunConfig
from mmr1.deepspeed_file import read_deepspeed_file
from mmr1_learner.hollow import fill
from mmr1_learner.model import Policy


def make_engine(config: RunConfig, policy: Policy) -> Any:
    """DeepSpeed's engine over the policy's trainable parameters, with AdamW.

    Raises:
        ConfigurationError: the user's DeepSpeed file contradicts the run.
    """
    derived = deepspeed_config(config, dist.get_world_size() if dist.is_initialized() else 1)
    _cut(policy, derived)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in policy.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
        # One pass over the states instead of a dozen, on a GPU and in the host's memory alike.
        fused=True if config.offload_optimizer or torch.cuda.is_available() else None,
    )
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=derived, dist_init_required=False)
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer):
        # By a proxy, since what refers to itself lives until the interpreter ends, with its process group's threads.
        asked = partial(_has_overflow, weakref.proxy(engine.optimizer))
        engine.optimizer.has_overflow_partitioned_grads_serial = asked
    return engine


def _has_overflow(optimizer: Any) -> Tensor:
    """[1], whether a gradient of this rank is no number: by a few launches.

    DeepSpeed's own asks each of hundreds of tensors by itself, ten launches each, while the GPU waits: with the 824 of
    a 3B model a tenth of a second of each step.
    """
    gradients = [grad for group in range(len(optimizer.bit16_groups)) for grad in optimizer.averaged_gradients[group]]
    largest = torch.nn.utils.get_total_norm([grad for grad in gradients if grad is not None], norm_type=float("inf"))
    return ~torch.isfinite(largest).reshape(1)


def partition_reference(config: RunConfig, reference: Policy) -> Policy:
    """The reference with its parameters cut over the ranks, as ZeRO-3 cuts the policy's; its forwards gather them."""
    derived = deepspeed_config(config)
    derived["zero_optimization"].pop("offload_optimizer", None)
    # What stays whole on every rank would not follow when the reference moves.
    derived["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    _cut(reference, derived)
    engine, *_ = deepspeed.initialize(model=reference, config=derived, dist_init_required=False)
    module: Policy = engine.module
    return module


def _cut(policy: Policy, derived: dict[str, Any]) -> None:
    """At stage 3, move the policy to the rank's device one parameter at a time, keeping this rank's share of each.

    DeepSpeed's engine would move all of it there before it cuts. What is cut is rank 0's.
    """
    if derived["zero_optimization"]["stage"] < 3:
        return
    if get_accelerator().device_name() == "cpu":  # nothing is moved, and what comes needs its place
        fill(policy.parameters())
    deepspeed.zero.Init(module=policy, config_dict_or_path=derived)
    device = get_accelerator().current_device_name()
    for buffer in policy.buffers():
        buffer.data = buffer.data.to(device)


def deepspeed_config(config: RunConfig, num_ranks: int | None = None) -> dict[str, Any]:
    """DeepSpeed's configuration: derived from the run's, with the user's file over it.

    Accumulation is ours (forwards differ between ranks and steps), so DeepSpeed is told of none and its boundary is set
    by hand. Without ZeRO DeepSpeed has no exact float32 master weights for bfloat16, so stage 1 holds them. It also is
    what one rank takes for stage 2, which goes through all gradients after each forward and not once an update: that is
    for keeping a share of them, and one rank's is the whole. Not where they go to the host meanwhile, nor where the
    user's file has them summed in another type, for which DeepSpeed has another optimizer at stage 1.

    Raises:
        ConfigurationError: the user's file contradicts the run.
    """
    bfloat16, stage = config.dtype == "bfloat16", config.zero_stage
    file = read_deepspeed_file(config)
    keeps_all = num_ranks == 1 and not config.offload_optimizer and "data_types" not in file
    if (stage == 0 and bfloat16) or (stage == 2 and keeps_all):
        stage = 1
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
    }
    pin = torch.cuda.is_available()
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": bfloat16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "zero_optimization": zero,
    }
    return _merged(derived, file)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over`'s keys on top of `under`'s, in depth."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
