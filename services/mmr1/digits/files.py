"""Drawn problems as files: two splits that share no scan, their pictures, and a manifest that says how they were made.

This file knows nothing of what a task asks, nor of models or templates.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmr1.digits.scans import Scans, save_scans
from mmr1.digits.tasks import EVAL_STREAM, TRAIN_STREAM, DigitTask


def write_problems(
    out: Path, task: DigitTask, scans: Scans, *, num_train: int, num_eval: int, seed: int, side: int
) -> None:
    """Write eval.json, train.json, their PNG files, scans.npz and manifest.json below `out`.

    The two splits share no scan. Problem i of a split depends on the seed and on i alone. train.json goes first and
    comes last and whole: where it is, all is, and of these arguments.

    Raises:
        ConfigurationError: the canvas has a size that the task or a Qwen-VL processor cannot keep.
    """
    task.check_canvas(side)
    for name in ("train", "eval", "manifest"):  # of an earlier call, whose images are about to go
        (out / f"{name}.json").unlink(missing_ok=True)
    splits = {"eval": (num_eval, scans.held_out(), EVAL_STREAM), "train": (num_train, scans.training(), TRAIN_STREAM)}
    texts = {}
    for name, (count, allowed, stream) in splits.items():
        folder = out / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for index in range(count):
            drawn = task.draw(np.random.default_rng([seed, stream, index]), allowed, side)
            path = folder / f"{index:05d}.png"
            Image.fromarray(drawn.pixels).save(path, compress_level=1)
            rows.append(_row(task, drawn.problem, drawn.solution, path.relative_to(out).as_posix()))
        texts[name] = _lines(rows)
    save_scans(scans, out / "scans.npz")
    manifest = {
        "task": task.name,
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


def _row(task: DigitTask, problem: str, solution: Any, image: str) -> dict[str, Any]:
    """A row says its task, so that files of several tasks can be put together; counting's is what a row has anyway."""
    row = {"problem": problem, "solution": solution, "image": image}
    return row if task.task == "counting" else row | {"task": task.task}


def _write(path: Path, text: str) -> None:
    """As a whole: a reader finds the old file, the new one or none."""
    aside = path.with_suffix(".json.writing")
    aside.write_text(text)
    os.replace(aside, path)


def _lines(rows: list[dict[str, Any]]) -> str:
    """A JSON array with one row a line, which both people and diffs can read."""
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"


__all__ = ["write_problems"]
