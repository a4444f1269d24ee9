"""The options of the learner's own work: how long, AdamW, what is trained, over which ranks, how often it is kept.

Facts about single options, and how these fit together; `options.py` puts all options together. Nothing here says what
the loss is made of: that is `objective.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic_settings import NoDecode

from mmr1.adapter_limits import check_adapter_updates


class OptimizerOptions(BaseModel):
    num_steps: int = Field(
        0, ge=0, description="steps of the whole run: batches, each with its weight update; 0 = as num_epochs says"
    )
    num_epochs: float | None = Field(
        None, gt=0, description="instead of num_steps: passes over the training problems, rounded up to a step"
    )
    learning_rate: float = Field(1e-6, gt=0, description="of AdamW, after warm-up")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="from the warm-up to the end of the run; linear and cosine end at 0"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of the run in which the learning rate rises")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's mean of gradients")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of AdamW's mean of squared gradients")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    seed: int = Field(0, ge=0, description="of the data order, of sampling and of the shuffles")
    per_device_batch_size: int = Field(gt=0, description="generations per device and forward, not prompts")
    gradient_accumulation_steps: int = Field(1, gt=0, description="forwards per step and device")
    gradient_checkpointing: bool | Literal["vision"] = Field(
        False,
        description="recompute activations in the backward pass, everywhere or in the vision tower alone: less memory, "
        "more time",
    )
    fused_kernels: Literal["auto", "liger", "none"] = Field(
        "auto",
        description="whose the learner takes on a GPU, for norms, gated layers and rotary positions; auto: Liger's "
        "where they are, and torch's for attention without a mask; none: transformers' own",
    )
    freeze_vision_tower: bool = Field(
        False, description="the vision tower and what joins it to the text stay as they are"
    )
    lora_rank: int = Field(0, ge=0, description="train low-rank adapters of this rank; 0 = train every weight")
    lora_alpha: float = Field(32.0, gt=0, description="what adapters add is scaled by lora_alpha / lora_rank")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="of the adapters' input; above 0 the learner no longer scores what was sampled"
    )
    lora_target_modules: Annotated[list[str], NoDecode] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="ends of the names of the linear layers that get adapters",
    )
    lora_updates: Literal["merged", "adapter"] = Field(
        "merged",
        description="sent to rollout servers: every weight with what adapters add, or after a start the adapters alone",
    )
    ref_sync_steps: int = Field(
        0, ge=0, description="the reference moves towards the policy every so many steps (TR-DPO); 0 = never"
    )
    ref_sync_alpha: float = Field(
        0.6, gt=0, le=1, description="reference = ref_sync_alpha x policy + (1 - ref_sync_alpha) x reference"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="DeepSpeed's ZeRO stage; bfloat16 keeps float32 master weights and takes 1 for 0, one rank 1 for 2",
    )
    offload_optimizer: bool = Field(False, description="optimizer states in the host's memory; ZeRO 1, 2 and 3")
    offload_parameters: bool = Field(False, description="parameters in the host's memory; ZeRO 3")
    deepspeed_config_file: Path | None = Field(
        None, description="DeepSpeed's JSON, merged over what the run derives; what contradicts the run is refused"
    )
    learner_processes: int = Field(
        1, gt=0, description="learner ranks that `mmr1 up` starts; under torchrun its own number of ranks counts"
    )
    learner_threads: int = Field(
        1, gt=0, description="CPU threads per learner rank; so many images are prepared at once"
    )
    checkpoint_every: int = Field(20, gt=0, description="optimizer steps between durable checkpoints")
    keep_last: int = Field(2, gt=0, description="checkpoints kept")

    @property
    def generations_per_step(self) -> int:
        return self.learner_processes * self.per_device_batch_size * self.gradient_accumulation_steps

    @property
    def sends_adapters(self) -> bool:
        """Whether updates are of adapters beside an unchanged base model."""
        return self.lora_updates == "adapter"

    @model_validator(mode="after")
    def _learner_fits(self) -> OptimizerOptions:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3; zero_stage is 0")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters needs zero_stage 3; zero_stage is {self.zero_stage}")
        if self.ref_sync_steps and self.lora_rank:
            raise ValueError(
                "ref_sync_steps with lora_rank: the reference is the base model without adapters and cannot move; "
                "leave one of them out"
            )
        if self.lora_rank and not self.lora_target_modules:
            raise ValueError("lora_target_modules is empty; name at least one linear layer, or leave lora_rank out")
        if self.sends_adapters:
            check_adapter_updates(self.lora_rank, self.freeze_vision_tower)
        return self
