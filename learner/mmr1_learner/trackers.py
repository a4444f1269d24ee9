"""TensorBoard and Weights & Biases: what metrics.jsonl says, once more, where people look at many runs.

They get every number of a line, whatever its name: a part of a mapping as `phases/forward`. Both are optional packages
and are imported only when a run names them. Rank 0 only. This file decides nothing about what is measured.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from mmr1.config import RunConfig
from mmr1_learner.metrics import RunFiles

log = structlog.get_logger()

PROJECT = "mmr1"  # of wandb, where WANDB_PROJECT does not say otherwise


class Trackers:
    """The run's trackers. A tracker that fails costs a warning, never a step."""

    def __init__(self, config: RunConfig, files: RunFiles, folder: Path) -> None:
        """`folder` is where they keep what they write: `tensorboard/` and `wandb/` in it."""
        self._tensorboard = folder / "tensorboard" if "tensorboard" in config.trackers else None
        self._writer: Any = None
        self._wandb = _start_wandb(config, files, folder) if "wandb" in config.trackers else None

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Numbers that are missing or not finite are left out: neither tracker can draw them."""
        values = dict(numbers(record))
        if self._tensorboard is not None:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # The first step of this life: what an earlier one has drawn from here on is forgotten.
                self._writer = SummaryWriter(str(self._tensorboard), purge_step=step)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        if self._wandb is not None:
            try:
                self._wandb.log(values, step=step)
            except Exception as error:  # its own service process has failed; metrics.jsonl has the line
                log.warning("wandb takes no more", reason=str(error))
                self._wandb = None

    def close(self, exit_code: int = 0) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=exit_code)
        self._tensorboard = self._writer = self._wandb = None


def numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number of a record, by its name; those in a mapping by `mapping/name`."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


def _start_wandb(config: RunConfig, files: RunFiles, folder: Path) -> Any:
    """The run's wandb run: the same one after a restart, by an id that the run's folder remembers."""
    import wandb

    known = files.read("trackers", {"wandb": uuid.uuid4().hex[:12]})
    files.write("trackers", known)
    options = config.model_dump(mode="json")
    del options["redis_url"]  # it may hold a password
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=config.run,
        id=known["wandb"],
        resume="allow",
        dir=str(folder),
        config=options,
    )


__all__ = ["Trackers", "numbers"]
