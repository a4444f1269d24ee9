"""DeepSpeed's engine around the policy: optimizer, configuration derived from the run's, learning-rate schedule.

It knows no loss and no plan; what a step does with the engine is the trainer's business.
"""

from __future__ import annotations

import math
from typing import Any

import deepspeed
import torch

from mmr1.config import RunConfig
from mmr1_learner.model import Policy


def make_engine(config: RunConfig, policy: Policy) -> Any:
    """DeepSpeed's engine over the policy's trainable parameters, with AdamW."""
    optimizer = torch.optim.AdamW(
        [parameter for parameter in policy.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
    )
    engine, *_ = deepspeed.initialize(
        model=policy, optimizer=optimizer, config=deepspeed_config(config), dist_init_required=False
    )
    return engine


def learning_rate(config: RunConfig, step: int) -> float:
    """The rate of optimizer step `step`, from 0: linear warm-up, then the schedule down to 0 at the run's end."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    if config.lr_scheduler == "linear":
        return config.learning_rate * (1 - progress)
    if config.lr_scheduler == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """DeepSpeed's configuration, derived from the run's.

    Accumulation is ours (forwards differ between ranks and steps), so DeepSpeed is told of none and its boundary is set
    by hand.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
    }
