"""What moves over the steps of a run: the learning rate, and with `RunConfig.temperature_at` the temperature.

Both are functions of the step and of `num_steps` alone; nothing of them is saved. So a run that goes on with another
`num_steps` goes on along another curve, which is said. This file knows no optimizer and no checkpoint.
"""

from __future__ import annotations

import math

import structlog

from mmr1.config import RunConfig

log = structlog.get_logger()


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


def say_other_length(config: RunConfig, num_steps: int, step: int, samples: bool = True) -> None:
    """Warn where a run goes on at `step` with schedules that a checkpoint of `num_steps` was not on its way along.

    Training longer, or less, is a thing to ask for: it is not refused. Constant schedules have nothing to say.

    Args:
        num_steps: of the run when the checkpoint was written; 0: written before it was kept.
        samples: whether this run samples at all; fine-tuning has no temperature.
    """
    if num_steps in (0, config.num_steps):
        return
    before = config.model_copy(update={"num_steps": num_steps})
    moved = {}
    if samples and config.temperature_func != "constant":
        moved["temperature"] = (before.temperature_at(step, num_steps), config.temperature_at(step, config.num_steps))
    if config.lr_scheduler != "constant":
        moved["learning_rate"] = (learning_rate(before, min(step, num_steps)), learning_rate(config, step))
    if moved:
        log.warning(
            "num_steps has changed since the checkpoint: schedules go on over the new number; give the old one to "
            "keep them",
            before=num_steps,
            now=config.num_steps,
            **{name: f"{old:.4g} would follow, {new:.4g} does" for name, (old, new) in moved.items()},
        )


__all__ = ["learning_rate", "say_other_length"]
