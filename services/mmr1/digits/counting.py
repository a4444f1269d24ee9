"""The counting task: "How many digits are there?", one to seven of them, as files.

This file knows nothing of models or templates.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmr1.digits.canvas import PATCH, Placement, compose
from mmr1.digits.scans import Scans, save_scans
from mmr1.errors import ConfigurationError

QUESTION = "How many digits are there?"
MOST_DIGITS = 7
SMALLEST_CANVAS = 112
# The streams of randomness; a file's problems and the endless supply of a warm start never share one.
TRAIN_STREAM, EVAL_STREAM, SUPPLY_STREAM = 0, 1, 2


def draw(rng: np.random.Generator, scans: Scans, side: int) -> tuple[npt.NDArray[np.uint8], list[Placement]]:
    """One problem: pixels [side, side] uint8 and the digits on it; their number is the answer, uniform from 1 to 7."""
    return compose(rng, scans, int(rng.integers(1, MOST_DIGITS + 1)), side)


def write_counting(out: Path, scans: Scans, *, num_train: int, num_eval: int, seed: int, side: int) -> None:
    """Write eval.json, train.json, their PNG files, scans.npz and manifest.json below `out`.

    The two splits share no scan. Problem i of a split depends on the seed and on i alone. train.json comes last and
    whole: where it is, all is.

    Raises:
        ConfigurationError: the canvas has a size that the task or a Qwen-VL processor cannot keep.
    """
    check_side(side)
    splits = {"eval": (num_eval, scans.held_out(), EVAL_STREAM), "train": (num_train, scans.training(), TRAIN_STREAM)}
    texts = {}
    for name, (count, allowed, stream) in splits.items():
        folder = out / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for index in range(count):
            pixels, placements = draw(np.random.default_rng([seed, stream, index]), allowed, side)
            path = folder / f"{index:05d}.png"
            Image.fromarray(pixels).save(path, compress_level=1)
            rows.append({"problem": QUESTION, "solution": len(placements), "image": path.relative_to(out).as_posix()})
        texts[name] = _lines(rows)
    save_scans(scans, out / "scans.npz")
    manifest = {
        "task": "counting",
        "source": "scikit-learn load_digits",
        "seed": seed,
        "canvas": side,
        "num_train": num_train,
        "num_eval": num_eval,
        "train_scans": scans.training().ids.tolist(),
        "eval_scans": scans.held_out().ids.tolist(),
        "scans_sha256": hashlib.sha256(scans.images.tobytes() + scans.labels.tobytes()).hexdigest(),
    }
    _write(out / "manifest.json", json.dumps(manifest) + "\n")
    for name, text in texts.items():
        _write(out / f"{name}.json", text)


def check_side(side: int) -> None:
    """Raise ConfigurationError unless seven digits fit and no processor would resize the canvas."""
    if side < SMALLEST_CANVAS or side % PATCH:
        raise ConfigurationError(
            f"canvas {side}: must be a multiple of {PATCH} (images are then never resized) of at least "
            f"{SMALLEST_CANVAS} (seven digits fit); try {max(SMALLEST_CANVAS, -(-side // PATCH) * PATCH)}"
        )


def _write(path: Path, text: str) -> None:
    """As a whole: a reader finds the old file, the new one or none."""
    aside = path.with_suffix(".json.writing")
    aside.write_text(text)
    os.replace(aside, path)


def _lines(rows: list[dict[str, Any]]) -> str:
    """A JSON array with one row a line, which both people and diffs can read."""
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"


__all__ = [
    "EVAL_STREAM",
    "MOST_DIGITS",
    "QUESTION",
    "SUPPLY_STREAM",
    "TRAIN_STREAM",
    "check_side",
    "draw",
    "write_counting",
]
