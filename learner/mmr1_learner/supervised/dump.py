"""What is kept of a fine-tuning step whose loss or gradient is not finite: its examples, and the loss of each.

A folder with JSON and the options, no tensors: fine-tuning is a function of its options, its data and the newest
checkpoint, so the same command goes back to that and comes to the same step, on one CPU process to the same bits.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmr1.config import save_config
from mmr1.config.sft_options import SftConfig

FORMAT = 1
DOCUMENT, CONFIG = "dump.json", "config.yaml"


class Seen(NamedTuple):
    """One example that a rank has scored in a step."""

    example: dict[str, Any]  # row, problem, solution, images
    loss: float  # its part of the step's loss


class FoundStep(NamedTuple):
    """What one rank's part of a step came to."""

    step: int  # from 1
    position: int  # of the step's first sequence in the data order
    reason: str
    seen: Sequence[Seen]


def write_dump(config: SftConfig, found: FoundStep, rank: int, world_size: int, checkpoint: Path | None) -> Path:
    """Returns the dump's folder: a later one of the same step takes its place.

    Raises:
        OSError: the disk does not take it.
    """
    folder = config.folder / "dumps" / f"step-{found.step:06d}-rank-{rank}"
    aside = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_config(config, aside / CONFIG)
    document = {
        "format": FORMAT,
        "kind": "fine_tuning",
        "reason": found.reason,
        "step": found.step,
        "position": found.position,
        "rank": rank,
        "world_size": world_size,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        # As Python writes a float: every bit comes back, and NaN and infinity have a form, which JSON lacks.
        "examples": [{**seen.example, "loss": repr(seen.loss)} for seen in found.seen],
    }
    (aside / DOCUMENT).write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    return folder


__all__ = ["FoundStep", "Seen", "write_dump"]
