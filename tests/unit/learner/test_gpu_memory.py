"""A learner whose GPU is full ends with one line and exit code 2: what ran out, on which rank, and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from mmr1.config.sft_options import SftConfig
from mmr1.errors import ConfigurationError, WeightUpdateError
from mmr1_learner import gpu_memory
from mmr1_learner import train as by_hand
from mmr1_learner.gpu_memory import out_of_memory
from mmr1_learner.model import load_policy
from mmr1_learner.supervised import command
from tests.models import small_config
from tests.unit.learner.test_early_refusals import write_config

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 79 GiB"


def fill(_: Any) -> bool:
    raise torch.OutOfMemoryError(FULL)


def fill_while_sending(_: Any) -> bool:
    try:
        return fill(_)
    except RuntimeError as error:
        raise WeightUpdateError("a receiver was lost during the broadcast") from error


def fill_a_librarys(_: Any) -> bool:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, train: Any) -> int:
    (folder / "train.json").write_text("[]")
    write_config(folder, Path("m"), folder, num_steps=1, per_device_batch_size=8)
    monkeypatch.chdir(folder)
    for name in ("set_environment", "configure_logging", "check"):
        monkeypatch.setattr(by_hand, name, lambda *_: None)
    monkeypatch.setattr(by_hand, "train", train)
    return by_hand.main(["--config", "sft.yaml"])


@pytest.mark.parametrize("train", [fill, fill_while_sending, fill_a_librarys])
def test_it_ends_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigurationError, match=r"rank 3: GPU 1 .*lower per_device_batch_size.*`mmr1 plan`") as raised:
        run(tmp_path, monkeypatch, train)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("loop", [fill, fill_a_librarys])
def test_it_ends_fine_tuning_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Any) -> None:
    monkeypatch.setattr(command, "set_environment", lambda _: None)
    monkeypatch.setattr(command, "configure_logging", lambda _: None)
    monkeypatch.setattr("mmr1_learner.supervised.loop.fine_tune", loop)
    with pytest.raises(ConfigurationError, match=r"rank 0: GPU 0 .*lower per_device_batch_size.*`mmr1 plan`"):
        command._train(SftConfig(**small_config(tmp_path).model_dump()))


@pytest.mark.parametrize(
    ("dtype", "on_gpu", "said"), [("float32", True, 1), ("float32", False, 0), ("bfloat16", True, 0)]
)
def test_float32_on_a_gpu_is_said(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, on_gpu: bool, said: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    with capture_logs() as lines:
        load_policy(str(small_model), small_config(small_model, dtype=dtype, fused_kernels="none"))
    assert sum(line["event"].startswith("float32 on a GPU") for line in lines) == said


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), WeightUpdateError("a receiver was lost")])
def test_other_failures_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: Any) -> bool:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run(tmp_path, monkeypatch, fail)


def test_figures_are_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**29, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 70 * 2**30)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    line = str(out_of_memory(torch.OutOfMemoryError(FULL), small_config(tmp_path)))
    assert "GPU 0 (of CUDA_VISIBLE_DEVICES 6,7)" in line
    assert "(peak 70.0 GiB allocated here, 0.5 GiB of 80.0 GiB free)" in line


def test_only_what_is_not_done_yet_is_advised(tmp_path: Path) -> None:
    done = {"gradient_checkpointing": True, "zero_stage": 3, "lora_rank": 8, "per_device_batch_size": 8}
    before = gpu_memory._remedies(small_config(tmp_path, fused_kernels="none"))
    after = gpu_memory._remedies(small_config(tmp_path, **done))
    asked = ("set gradient_checkpointing", "set fused_kernels", "raise zero_stage", "set lora_rank")
    assert [words in before for words in asked] == [True] * 4
    assert [words in after for words in asked] == [False] * 4
    assert "lower lora_rank" in after
