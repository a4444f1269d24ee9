"""The options of `mmr1 eval`: those of a run, so that one YAML file serves both, and what only evaluation has.

Options of training (the objective, the optimizer, rewards, Redis) may stand in the file and have no effect. Like
options.py it opens no file and checks no machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from mmr1.config.options import RunConfig

FOLDER = "eval"


class EvalConfig(RunConfig):
    """A RunConfig whose steps and batches may be missing, and how its `model` is evaluated."""

    per_device_batch_size: int = Field(1, gt=0, description="of training; no effect")
    eval_mode: Literal["greedy", "sampled"] = Field(
        "greedy", description="the likeliest answer, or answers drawn at `temperature`"
    )
    eval_samples: int = Field(1, gt=0, description="sampled: answers to each problem; metrics are their mean")
    eval_dir: Path | None = Field(None, description="where results go; default: RUN_DIR/eval")
    rollout_servers: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="addresses, HOST:PORT, of running rollout servers; default: starts its own"
    )

    @property
    def folder(self) -> Path:
        """Everything that the evaluation leaves behind."""
        return self.eval_dir or self.run_dir / FOLDER

    @property
    def evaluation_temperature(self) -> float:
        return self.temperature if self.eval_mode == "sampled" else 0.0

    @property
    def num_samples(self) -> int:
        return self.eval_samples if self.eval_mode == "sampled" else 1

    def for_services(self) -> RunConfig:
        """The configuration of the services that are started: what only training needs is the least that is valid."""
        values = {name: getattr(self, name) for name in RunConfig.model_fields}
        values |= {name: None for name in values if name.startswith("redis_") and name != "redis_port"}
        values |= {"run_dir": self.folder, "num_steps": 1, "num_epochs": None}
        values |= {"per_device_batch_size": self.num_generations, "gradient_accumulation_steps": 1}
        values |= {"learner_processes": 1, "lora_rank": 0, "lora_updates": "merged"}
        return RunConfig.model_construct(_fields_set=self.model_fields_set & set(values), **values)

    @field_validator("rollout_servers")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        for address in value:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 2**16:
                raise ValueError(f"{address!r} is no address; write HOST:PORT, as 127.0.0.1:7390")
        return value

    @model_validator(mode="after")
    def _samples_are_sampled(self) -> EvalConfig:
        if self.eval_mode == "greedy" and self.eval_samples > 1:
            raise ValueError(
                f"eval_samples {self.eval_samples} with eval_mode greedy: every answer would be the same; set "
                "eval_mode to sampled"
            )
        return self

    @model_validator(mode="after")
    def _has_one_length(self) -> EvalConfig:
        """No step is taken."""
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> EvalConfig:
        """No batch is made."""
        return self
