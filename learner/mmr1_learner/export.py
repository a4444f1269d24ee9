"""The trained model as plain folders: what transformers and vLLM load, and the adapters alone where there are some.

Knows files; what the tensors are is known to published.py. A folder appears as a whole; the one that it replaces is
there until then, under its own name or, for a moment, as NAME.replaced.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from mmr1.config import RunConfig
from mmr1_learner.adapters import save_adapters
from mmr1_learner.published import Published


def export(config: RunConfig, published: Published, processor: Any, folder: Path) -> None:
    """Write `model/` and, with adapters, `adapter/` into `folder`. Every rank calls it; rank 0 writes.

    `model/` has merged weights under the base folder's names; `adapter/` belongs beside the base model.
    """
    adapters = published.adapter_tensors()
    if not published.is_first:
        return
    aside = _start(folder / "model")
    own, known = published.state(), dict(published.named_tensors())
    if own.keys() == known.keys():
        published.hf.save_pretrained(aside, state_dict=own)
    else:  # a family whose own names vLLM does not load: names that both libraries do
        published.hf.save_pretrained(aside, state_dict=known, save_original_format=False)
    processor.save_pretrained(aside)
    _finish(aside, folder / "model")
    if adapters:
        aside = _start(folder / "adapter")
        save_adapters(adapters, published.hf, config, aside)
        _finish(aside, folder / "adapter")


def _start(folder: Path) -> Path:
    aside = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    return aside


def _finish(aside: Path, folder: Path) -> None:
    for weights in aside.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors makes it private; a container's user must read it
    for file in aside.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    replaced = folder.with_name(f"{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    aside.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
