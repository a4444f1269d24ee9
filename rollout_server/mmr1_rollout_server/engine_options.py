"""What a run's options and a prompt's sampling mean to vLLM (0.26 to 0.33), by the names of its own options.

Starts nothing and asks nothing: `engine.py` does.
"""

from __future__ import annotations

import zlib
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from mmr1.adapter_limits import engine_rank
from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.records import Sampling

# The learner adds the same number to the same logits before it divides by the temperature, as vLLM's sampler does.
FORBIDDEN_BIAS = -100.0
MAX_IMAGES_PER_PROMPT = 8
WEIGHT_TRANSFER_BACKEND = "mmr1"  # registered by the worker extension, in the worker
WORKER_EXTENSION = "mmr1_rollout_server.weight_transfer.WorkerExtension"

_LARGE_GPU_BYTES = 70 * 2**30


def engine_arguments(config: RunConfig, server_id: str) -> AsyncEngineArgs:
    """What the run's options mean to vLLM. On CUDA, graphs stay on; on a CPU there is nothing to capture."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    max_model_len = config.max_prompt_length + config.max_completion_length
    options: dict[str, Any] = {}
    if not on_cpu:
        options |= {
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "renderer_num_workers": config.rollout_threads,
        }
    return AsyncEngineArgs(
        model=config.model,
        dtype=config.dtype,
        enforce_eager=on_cpu,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        tensor_parallel_size=config.rollout_tensor_parallel_size,
        max_num_batched_tokens=max(max_model_len, config.max_num_seqs, _tokens_a_pass()),
        limit_mm_per_prompt={"image": MAX_IMAGES_PER_PROMPT, "video": 0},
        mm_processor_kwargs=mm_processor_kwargs(config) or None,
        # The cache of pixels is in two processes. A request that ends between them leaves them unlike, and so does what
        # is made ready before an update and sampled after it; several threads must do without it too. In its place the
        # engine holds the pixels once for each completion that is being sampled.
        mm_processor_cache_gb=0,
        logprobs_mode="processed_logprobs",  # of the distribution sampled from: after bias and temperature
        enable_prefix_caching=True,
        # Replicas must not draw the same random numbers for the same prompt.
        seed=zlib.crc32(f"{config.seed}/{server_id}".encode()) & 0x7FFFFFFF,
        worker_extension_cls=WORKER_EXTENSION,
        weight_transfer_config=WeightTransferConfig(backend=WEIGHT_TRANSFER_BACKEND),
        disable_log_stats=True,
        **options,
        **adapter_options(config, on_cpu=on_cpu),
    )


def _tokens_a_pass() -> int:
    """Of all requests together, prompts included: as many as vLLM's offline engine takes by default.

    A 3B model on an H200 gave 0.84 of that engine's tokens a second with 4096.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return 4096
    return 16384 if current_platform.get_device_total_memory() >= _LARGE_GPU_BYTES else 8192


def devices(tensor_parallel_size: int) -> tuple[str, ...]:
    """Where the engine's weights are, one name for each worker: what the learner chooses the way of weights by."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return ("cpu",) * tensor_parallel_size
    numbers = [current_platform.get_device_uuid(index) for index in range(tensor_parallel_size)]
    return tuple(str(number).removeprefix("GPU-") for number in numbers)


def adapter_options(config: RunConfig, *, on_cpu: bool) -> dict[str, Any]:
    """vLLM's options for a run whose updates are of adapters: one slot, as large as they are, on their layers alone.

    Raises:
        ConfigurationError: vLLM has no kernel for them.
    """
    if not config.sends_adapters:
        return {}
    if config.dtype != "bfloat16" and not on_cpu:
        raise ConfigurationError(
            f"lora_updates adapter: vLLM's kernels for adapters on a GPU take bfloat16, and dtype is {config.dtype}; "
            "set dtype to bfloat16, or leave lora_updates at merged"
        )
    return {
        "enable_lora": True,
        "max_lora_rank": engine_rank(config.lora_rank),
        "max_loras": 1,
        "max_cpu_loras": 1,
        "lora_target_modules": list(config.lora_target_modules),
    }


def adapter_request(adapter_id: int) -> LoRARequest | None:
    """What a request says to be sampled with the adapter of that id. Id and name are new for each update.

    vLLM's prefix cache goes by the name. The worker holds the adapter: were it lost, the path would make the request
    fail instead of having it sampled without.
    """
    return LoRARequest(f"adapter-{adapter_id}", adapter_id, "/received-not-read") if adapter_id else None


def mm_processor_kwargs(config: RunConfig) -> dict[str, Any]:
    bounds = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    return {name: value for name, value in bounds.items() if value is not None}


def sampling_params(sampling: Sampling, num_generations: int) -> SamplingParams:
    """Temperature 0 is greedy. `logprobs=0` returns the sampled token's log-probability and nothing beside it."""
    return SamplingParams(
        n=num_generations,
        temperature=sampling.temperature,
        top_p=sampling.top_p if sampling.temperature else 1.0,
        max_tokens=sampling.max_completion_length,
        seed=sampling.seed,
        stop=list(sampling.stop) or None,
        include_stop_str_in_output=True,  # the text that is scored is the text of the tokens that are trained
        ignore_eos=sampling.ignore_eos,
        logprobs=0,
        logit_bias={token: FORBIDDEN_BIAS for token in sampling.forbidden_token_ids} or None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
