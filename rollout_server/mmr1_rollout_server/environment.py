"""The process environment that the engine reads when it is imported. Must be applied before torch or vllm is.

This file knows variable names only; it imports neither.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmr1.config import RunConfig
from mmr1.local.plan import has_cuda
from mmr1_rollout_server.orphan_guard import SERVER_PID


def apply(config: RunConfig) -> None:
    """Set what the engine and its child processes will read. Variables that only tune keep a value already set."""
    threads = str(config.rollout_threads)
    os.environ.update(
        OMP_NUM_THREADS=threads,
        MKL_NUM_THREADS=threads,
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # binding would pin every replica on a machine to the same cores
        VLLM_CPU_KVCACHE_SPACE=str(config.kv_cache_gib),
        TOKENIZERS_PARALLELISM="false",
        VLLM_NO_USAGE_STATS="1",
        **{SERVER_PID: str(os.getpid())},
    )
    if has_cuda(os.environ):
        # A forked engine inherits OpenMP's threads as locks without holders, and hangs in its first parallel loop.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    else:
        # vLLM compiles a few small functions with g++ when they are first used, eager or not: seconds in the middle of
        # the first update, and a compiler that an image need not have.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if Path(config.model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
