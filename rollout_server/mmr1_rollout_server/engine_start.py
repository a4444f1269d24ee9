"""The start of vLLM's engine, and what the server can know of one that failed for want of memory.

The engine starts in processes of its own, and vLLM tells their parent only that one of them has ended. Here they leave
what they raised in a file (`engine_failures.py`): the engine's core because it runs inside `run_engine_core`, workers
beside it because their extension listens. Knows vLLM's messages and the options that mend what they say.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from vllm.v1.engine.core import EngineCoreProc

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1_rollout_server.engine_failures import FAILURES, leave, one_line

# Where vLLM goes on to advise by the names of its own options.
_ADVICE = re.compile(r"[,.]? (?:Try increasing|Decrease GPU|To resolve|See https|See documentation|please check) ")

log = structlog.get_logger()

_run_engine_core = EngineCoreProc.run_engine_core


@contextmanager
def starting(config: RunConfig, *, on_cpu: bool) -> Iterator[None]:
    """The engine is started inside. What fails for want of memory is said in one line, with what mends it.

    Raises:
        ConfigurationError: there is too little memory for it, which the next start would find as well. Memory that
            others hold may be free then: an engine that was killed gives its own back a moment later.
    """
    with tempfile.TemporaryDirectory(prefix="mmr1-engine-") as folder:
        file = Path(folder) / "failures"
        os.environ[FAILURES] = str(file)
        original = EngineCoreProc.run_engine_core
        EngineCoreProc.run_engine_core = staticmethod(run_engine_core)
        try:
            yield
        except Exception as error:
            told = file.read_text().splitlines() if file.exists() else []
            for reason in (*told, one_line(error)):
                if remedy := remedy_of(reason, config, on_cpu=on_cpu):
                    said = f"vLLM does not start: {_ADVICE.split(reason)[0]}; {remedy}"
                    if may_pass(reason):
                        log.error(said)
                        break
                    raise ConfigurationError(said) from error
            raise
        finally:
            EngineCoreProc.run_engine_core = staticmethod(original)
            del os.environ[FAILURES]


def run_engine_core(*arguments: Any, **options: Any) -> None:
    """vLLM's own, in the engine's process."""
    try:
        _run_engine_core(*arguments, **options)
    except Exception as error:
        leave(error)
        raise


def may_pass(reason: str) -> bool:
    """Whether others hold the memory that is short."""
    ours = ("No available memory for the cache blocks", "the available KV cache memory")
    return not any(message in reason for message in ours)


def remedy_of(reason: str, config: RunConfig, *, on_cpu: bool) -> str | None:
    """What mends it. None: vLLM has not said that memory is short."""
    utilization = f"gpu_memory_utilization (now {config.gpu_memory_utilization:g})"
    cut = f"cut the model over more GPUs with rollout_tensor_parallel_size (now {config.rollout_tensor_parallel_size})"
    now = f"(now {config.max_prompt_length}, {config.max_completion_length})"
    lengths = f"max_prompt_length or max_completion_length {now}"
    more = f"raise kv_cache_gib (now {config.kv_cache_gib})" if on_cpu else f"raise {utilization}, {cut}"
    if "No available memory for the cache blocks" in reason:
        return f"{more}, or lower max_num_seqs (now {config.max_num_seqs}) or {lengths}"
    if "larger than the available KV cache memory" in reason:
        return f"{more}, or lower {lengths}"
    if "less than desired GPU memory utilization" in reason:
        return f"lower {utilization}, or end what else uses this GPU"
    if "Available memory on node" in reason:
        return f"lower kv_cache_gib (now {config.kv_cache_gib}), or end what else uses this machine's memory"
    if "out of memory" in reason:
        return f"lower max_num_seqs (now {config.max_num_seqs}) or {utilization}, {cut}, or end what else uses this GPU"
    return None
