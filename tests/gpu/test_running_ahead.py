"""A step's forwards and backwards are launched without once waiting for the GPU: the host is ahead of it from then on.

As tests/unit/learner/test_running_ahead.py, on a GPU: copies that wait are seen here too. DeepSpeed's engine plays no
part; benchmarks/learner_profile.py says where a step with it waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.unit.learner.test_running_ahead import Setting, launch

CUDA = torch.device("cuda")


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("checkpointing", [False, "vision"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_nothing_waits_until_a_step_is_launched(
    family: str, checkpointing: bool | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(family, tmp_path, CUDA, monkeypatch)
    trainer = setting.trainer(kl=[], dtype="bfloat16", gradient_checkpointing=checkpointing)
    report = trainer.step(setting.plan)  # compiles what is compiled
    assert report["num_tokens"] > 0
    with waiting_is_an_error():
        launch(trainer, setting.plan)
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchron"):
        torch.ones(1, device=CUDA).item()  # the means of telling do tell
