"""An engine that has no memory to start with: what its processes raise becomes the server's one line.

The messages are vLLM's own, raised by it; the processes are real, and vLLM's, with the engine's core replaced.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

pytest.importorskip("vllm")

from vllm.config import CacheConfig
from vllm.utils.mem_utils import MemorySnapshot
from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.worker.utils import request_memory

from mmr1.errors import ConfigurationError
from mmr1_rollout_server import engine_failures, engine_start
from mmr1_rollout_server.engine_start import starting
from tests.models import small_config


def no_cache() -> None:
    _check_enough_kv_cache_memory(0, lambda: 1, 1024, lambda available: 0)


def too_long() -> None:
    _check_enough_kv_cache_memory(2**30, lambda: 2**31, 4096, lambda available: 2048)


def in_use() -> None:
    snapshot = MemorySnapshot(device="cpu", auto_measure=False, free_memory=2**30, total_memory=80 * 2**30)
    request_memory(snapshot, CacheConfig(gpu_memory_utilization=0.5))


def full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a capacity of 79 GiB")


def of_a_worker() -> None:
    """As the executor says it in the core's process, of a call to workers in processes of their own."""
    raise RuntimeError(
        "Worker failed with error 'CUDA out of memory', please check the stack trace above for the root cause"
    )


def broken() -> None:
    raise ValueError("unknown layer type")


def start(core: Callable[..., None], config: Any, monkeypatch: pytest.MonkeyPatch, *, on_cpu: bool) -> None:
    """As vLLM's `CoreEngineProcManager` does: the engine's core in a process, of which only the end is known."""
    monkeypatch.setattr(engine_start, "_run_engine_core", core)
    with starting(config, on_cpu=on_cpu):
        process = multiprocessing.get_context("fork").Process(target=EngineCoreProc.run_engine_core)
        process.start()
        process.join()
        assert process.exitcode == 1
        raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


@pytest.mark.parametrize(
    ("core", "on_cpu", "reason", "remedy"),
    [
        (no_cache, False, "No available memory", "raise gpu_memory_utilization .*rollout_tensor_parallel_size"),
        (no_cache, True, "No available memory", "raise kv_cache_gib .*or lower max_num_seqs"),
        (too_long, False, "maximum model length is 2048;", "raise gpu_memory_utilization .*max_completion_length"),
    ],
)
def test_too_little_memory_is_the_configurations(
    core: Callable[[], None], on_cpu: bool, reason: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=f"vLLM does not start: .*{reason}.* {remedy}") as raised:
        start(core, small_config(tmp_path), monkeypatch, on_cpu=on_cpu)
    assert "\n" not in str(raised.value)
    assert "Try increasing" not in str(raised.value), "vLLM's names of options are not ours"


@pytest.mark.parametrize(
    ("core", "reason", "remedy"),
    [
        (in_use, r"Free memory on device .* \(0.5, 40.0 GiB\);", "lower gpu_memory_utilization"),
        (full, "CUDA out of memory", "lower max_num_seqs .*rollout_tensor_parallel_size"),
        (of_a_worker, "Worker failed with error 'CUDA out of memory';", "lower max_num_seqs"),
    ],
)
def test_memory_that_others_hold_is_named_and_may_be_free_at_the_next_start(
    core: Callable[[], None], reason: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that was killed gives its own back a moment later: its successor must not end the run."""
    with capture_logs() as logs, pytest.raises(RuntimeError, match="Engine core initialization failed"):
        start(core, small_config(tmp_path), monkeypatch, on_cpu=False)
    (said,) = [entry["event"] for entry in logs]
    assert re.search(f"vLLM does not start: .*{reason}.* {remedy}", said) and "\n" not in said


def test_what_a_worker_beside_the_core_logs_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core then says only that a background process has failed."""
    logger = logging.getLogger("vllm.v1.executor.multiproc_executor")
    monkeypatch.setattr(logger, "handlers", [])

    def core() -> None:
        engine_failures.listen()  # a worker's
        try:
            full()
        except torch.OutOfMemoryError:
            logger.exception("WorkerProc failed to start.")
        raise RuntimeError("WorkerProc initialization failed due to an exception in a background process.")

    with capture_logs() as logs, pytest.raises(RuntimeError):
        start(core, small_config(tmp_path), monkeypatch, on_cpu=False)
    assert re.search("CUDA out of memory.*lower max_num_seqs", logs[0]["event"])


def test_other_failures_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = EngineCoreProc.run_engine_core
    with pytest.raises(RuntimeError, match="Engine core initialization failed"):
        start(broken, small_config(tmp_path), monkeypatch, on_cpu=False)
    assert engine_failures.FAILURES not in os.environ
    monkeypatch.undo()
    with starting(small_config(tmp_path), on_cpu=False):
        pass
    assert EngineCoreProc.run_engine_core is before
