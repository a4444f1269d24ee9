"""TensorBoard and Weights & Biases: what metrics.jsonl says, once more, where people look at many runs.

They get every number of a line, whatever its name: a part of a mapping as `phases/forward`. Both are optional packages
and are imported only when a run names them. Rank 0 only. This file decides nothing about what is measured.
"""

from __future__ import annotations

import math
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from mmr1.config import RunConfig
from mmr1_learner.metrics import RunFiles

log = structlog.get_logger()

PROJECT = "mmr1"  # of wandb, where WANDB_PROJECT does not say otherwise
STEP = "step"  # what wandb draws everything over


class Trackers:
    """The run's trackers. One that fails costs a warning and is used no more: metrics.jsonl has every line."""

    def __init__(self, config: RunConfig, files: RunFiles, folder: Path) -> None:
        """`folder` is where they keep what they write: `tensorboard/` and `wandb/` in it."""
        self._running: dict[str, _TensorBoard | _Wandb] = {}
        for name in config.trackers:
            with self._warned(name):
                self._running[name] = _TensorBoard(folder) if name == "tensorboard" else _Wandb(config, files, folder)

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Numbers that are missing or not finite are left out: neither tracker can draw them."""
        values = dict(numbers(record))
        for name, tracker in list(self._running.items()):
            with self._warned(name):
                tracker.log(step, values)

    def close(self, exit_code: int = 0) -> None:
        """After the last number. An `exit_code` other than 0 says that the run has failed."""
        for name, tracker in list(self._running.items()):
            with self._warned(name):
                tracker.close(exit_code)
        self._running.clear()

    @contextmanager
    def _warned(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a full disk, a file in the way, no network, a service process that has died
            log.warning("tracker failed; the run goes on without it", tracker=name, reason=repr(error)[:300])
            self._running.pop(name, None)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # The first step of this life: what an earlier one has drawn from here on is forgotten.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, exit_code: int) -> None:
        """It has no place for an exit code."""
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    """The run's wandb run: the same one after a restart, by an id that the run's folder remembers."""

    def __init__(self, config: RunConfig, files: RunFiles, folder: Path) -> None:
        import wandb

        known = files.read("trackers", {"wandb": uuid.uuid4().hex[:12]})
        files.write("trackers", known)
        options = config.model_dump(mode="json")
        del options["redis_url"]  # it may hold a password
        with _no_arguments():
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=config.run,
                id=known["wandb"],
                resume="allow",
                dir=str(folder),
                config=options,
            )
        # Its own count of steps only grows, and what comes with a lower one it drops: a resumed run takes steps again.
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, STEP: step})

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


@contextmanager
def _no_arguments() -> Iterator[None]:
    """wandb keeps the command line, on which the Redis password may stand; the options are in the config already."""
    words = sys.argv
    sys.argv = words[:1]
    try:
        yield
    finally:
        sys.argv = words


def numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number of a record, by its name; those in a mapping by `mapping/name`."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


__all__ = ["Trackers", "numbers"]
