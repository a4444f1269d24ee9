"""The options of `mmr1 sft`: those of a run, so that one YAML file serves both, and what only fine-tuning has.

Options that only reinforcement has (sampling, rewards, the objective, ports) may stand in the file and have no effect.
Like options.py it opens no file and checks no machine.
"""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field, model_validator

from mmr1.config.options import RunConfig
from mmr1.errors import ConfigurationError

FOLDER = "sft"


class SftConfig(RunConfig):
    """A RunConfig in which `per_device_batch_size` counts sequences, and steps may be given as epochs."""

    num_steps: int = Field(0, ge=0, description="optimizer steps; 0 = as many as num_epochs makes")
    num_epochs: float | None = Field(
        None, gt=0, description="passes over the training problems, rounded up to a step; goes before num_steps"
    )

    @property
    def folder(self) -> Path:
        """Everything that fine-tuning leaves behind: a run of reinforcement may have the same run_dir."""
        return self.run_dir / FOLDER

    def for_problems(self, num_problems: int, world_size: int) -> SftConfig:
        """The same with `num_steps` known. `world_size` is the number of learner ranks that train.

        Raises:
            ConfigurationError: neither num_steps nor num_epochs is given.
        """
        if self.num_epochs is None:
            if not self.num_steps:
                raise ConfigurationError("mmr1 sft needs --num_steps or --num_epochs; give one of them")
            return self
        per_step = world_size * self.per_device_batch_size * self.gradient_accumulation_steps
        return self.model_copy(update={"num_steps": math.ceil(self.num_epochs * num_problems / per_step)})

    @model_validator(mode="after")
    def _has_one_length(self) -> SftConfig:
        """A run's file may give one of them, and the command line the other; `for_problems` asks for one."""
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> SftConfig:
        """A sequence is no part of a group here: any batch will do."""
        return self
