"""The options of `mmr1 plan`: those of a run, so that one YAML file serves both, and what only a plan has.

A plan chooses how the run is laid out, so options that say it may stand in the file and are answered by others; on the
command line they are kept (`mmr1.capacity.layouts.FIXING`). Like options.py it opens no file and checks no machine.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mmr1.config.options import RunConfig

DEFAULT_PROMPTS = 32


class PlanConfig(RunConfig):
    """A RunConfig of which only the model must be given, and the GPUs that it is planned for."""

    gpus: int = Field(gt=0, le=1024, description="GPUs to share out, of one machine or several")
    gpu: Literal["h100", "h200"] = Field("h100", description="which")
    gpu_memory: float | None = Field(None, gt=0, description="GiB of each; default: 78 of an h100, 139 of an h200")
    gpus_per_node: int = Field(8, gt=0, description="of one machine; between machines links are slower")
    image_size: str = Field("448", description="pixels of an image: SIDE or WIDTHxHEIGHT")
    images: int = Field(1, gt=0, description="in a prompt")
    image_tiles: int | None = Field(None, gt=0, description="into which an image is cut, by families that do")
    prompts: int | None = Field(None, gt=0, description="of a step; default: as many as the file says, or 32")
    as_json: bool = Field(False, description="a JSON document instead of tables")
    train_file: Path = Field(Path("train.json"), description="no effect")
    per_device_batch_size: int = Field(1, gt=0, description="of a file: says how many prompts a step has")

    @field_validator("image_size", mode="before")
    @classmethod
    def _is_a_size(cls, value: object) -> str:
        if re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})?", str(value), re.ASCII) is None:
            raise ValueError("write a side in pixels, as 896, or WIDTHxHEIGHT, as 1280x720")
        return str(value)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, _, height = self.image_size.partition("x")
        return int(width), int(height or width)

    @property
    def planned_prompts(self) -> int:
        """Of a step, before it is rounded to what a layout's ranks can share."""
        if self.prompts is not None:
            return self.prompts
        given = "per_device_batch_size" in self.model_fields_set
        return -(-self.generations_per_step // self.num_generations) if given else DEFAULT_PROMPTS

    @property
    def planned_dtype(self) -> Literal["float32", "bfloat16"]:
        """What the run says; where it says nothing, what is fast on a GPU."""
        return self.dtype if "dtype" in self.model_fields_set else "bfloat16"

    @model_validator(mode="after")
    def _has_one_length(self) -> PlanConfig:
        """No step is taken."""
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> PlanConfig:
        """The plan chooses the batch."""
        return self
