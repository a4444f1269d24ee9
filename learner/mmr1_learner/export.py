"""The trained model as plain folders: what transformers and vLLM load, and the adapters alone where there are some.

Knows files; what the tensors are is known to published.py.
"""

from __future__ import annotations

from typing import Any

from mmr1.config import RunConfig
from mmr1_learner.adapters import save_adapters
from mmr1_learner.published import Published


def export(config: RunConfig, published: Published, processor: Any) -> None:
    """Write `model/` and, with adapters, `adapter/` into the run's folder. Every rank calls it; rank 0 writes.

    `model/` has merged weights under the base model's names; `adapter/` belongs beside the base model.
    """
    adapters = published.adapter_tensors()
    if not published.is_first:
        return
    folder = config.run_dir / "model"
    published.hf.save_pretrained(folder, state_dict=published.state())
    processor.save_pretrained(folder)
    if adapters:
        save_adapters(adapters, published.hf, config, config.run_dir / "adapter")
