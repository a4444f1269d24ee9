"""vLLM, as this project sees it: prompts in, groups out, and the calls of a weight update.

Beside the worker extension and `engine_start.py` this is the only file that imports vllm (0.26 to 0.33), and it does so
when loaded, so `environment.apply` comes first. It knows nothing of gRPC, streams, rewards, or whether a caller may
sample now.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from typing import Any

import structlog
import vllm
import vllm.exceptions
from PIL import Image
from vllm import AsyncEngineArgs, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.transformers_utils.processor import cached_processor_from_config
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from mmr1.adapter_limits import engine_rank
from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError, WeightUpdateError
from mmr1.preprocessing import fingerprint
from mmr1.records import FinishReason, Group, PolicyVersion, Prompt, Rollout, Sampling, TensorSpec, VersionSpan
from mmr1_rollout_server.engine_failures import one_line
from mmr1_rollout_server.engine_start import starting
from mmr1_rollout_server.errors import EngineDiedError, PromptError
from mmr1_rollout_server.transfer import TransferPlan, WriteReport

# What vLLM raises when a request itself is at fault; the first exists since the class does, the second always did.
_LARGE_GPU_BYTES = 70 * 2**30
_PROMPT_FAULTS: tuple[type[Exception], ...] = (getattr(vllm.exceptions, "VLLMClientError", ValueError), ValueError)

# The learner adds the same number to the same logits before it divides by the temperature, as vLLM's sampler does.
FORBIDDEN_BIAS = -100.0
MAX_IMAGES_PER_PROMPT = 8
ENGINE_EXIT_SECONDS = 15.0  # its processes need five or six to take themselves apart; vLLM's default kills them at five
WEIGHT_TRANSFER_BACKEND = "mmr1"  # registered by the worker extension, in the worker
WORKER_EXTENSION = "mmr1_rollout_server.weight_transfer.WorkerExtension"

_log = structlog.get_logger(__name__)


class Engine:
    """One vLLM engine in processes of its own. Create it with `load`."""

    def __init__(self, llm: AsyncLLM, config: RunConfig, server_id: str, preprocessing: dict[str, str]) -> None:
        self._llm = llm
        self.preprocessing = preprocessing  # facts about how images are prepared
        self.devices = devices(config.rollout_tensor_parallel_size)
        self._server_id = server_id
        self._max_prompt_length = config.max_prompt_length
        self._mm_processor_kwargs = mm_processor_kwargs(config)
        self._request_numbers = itertools.count()
        self._sends_adapters = config.sends_adapters
        self._adapter: LoRARequest | None = None  # of the version that the engine holds

    @classmethod
    def load(cls, config: RunConfig, server_id: str) -> Engine:
        """Start the engine's processes and load the model: blocks for tens of seconds.

        Raises:
            ConfigurationError: vLLM refuses the options, does not know the model, or has too little memory for it.
        """
        from vllm.platforms import current_platform

        arguments = engine_arguments(config, server_id)
        try:
            vllm_config = arguments.create_engine_config()
        except (ValueError, OSError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigurationError(
                f"vLLM {vllm.__version__} refuses model {config.model}: {reason.strip()}"
            ) from error
        facts = fingerprint(cached_processor_from_config(vllm_config.model_config))
        with starting(config, on_cpu=current_platform.is_cpu()):
            llm = AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=True)
        return cls(llm, config, server_id, facts)

    @property
    def is_dead(self) -> bool:
        return bool(self._llm.errored)

    async def generate(self, prompt: Prompt, images: Sequence[Image.Image], version: PolicyVersion) -> Group:
        """Sample the prompt's G completions under the weights that the engine holds, labelled `version`.

        Raises:
            PromptError: the prompt itself is at fault.
            EngineDiedError: the engine is gone.
        """
        begun = time.monotonic()
        request: dict[str, Any] = {"prompt": prompt.text}
        if images:
            request["multi_modal_data"] = {"image": list(images)}
        if images and self._mm_processor_kwargs:
            request["mm_processor_kwargs"] = self._mm_processor_kwargs
        greedy = prompt.sampling.temperature == 0
        # Greedy completions of one prompt are all the same, and vLLM refuses to compute more than one.
        output = await self._run(request, prompt.sampling, 1 if greedy else prompt.num_generations)
        prompt_token_ids = tuple(output.prompt_token_ids or ())
        if len(prompt_token_ids) > self._max_prompt_length:
            raise PromptError(
                f"{len(prompt_token_ids)} prompt tokens, above max_prompt_length {self._max_prompt_length}"
            )
        return Group(
            prompt=prompt,
            prompt_token_ids=prompt_token_ids,
            rollouts=tuple(rollout(completion, version) for completion in output.outputs)
            * (prompt.num_generations if greedy else 1),
            server_id=self._server_id,
            generate_seconds=time.monotonic() - begun,
        )

    async def _run(self, request: dict[str, Any], sampling: Sampling, num_generations: int) -> RequestOutput:
        output: RequestOutput | None = None
        request_id = f"{self._server_id}-{next(self._request_numbers)}"
        try:
            params = sampling_params(sampling, num_generations)
            # Given as it is, a prompt is made into tokens and pixels by vLLM 0.26 in our event loop, which also answers
            # gRPC and keeps leases; the renderer has a thread for that in every version.
            (rendered,) = await self._llm.renderer.render_cmpl_async([request])
            asked = self._llm.generate(rendered, params, request_id, lora_request=self._adapter)
            async for output in asked:  # noqa: B007 - the last one is kept
                pass
        except EngineDeadError as error:
            raise EngineDiedError("the engine died while sampling") from error
        except EngineGenerateError as error:
            if isinstance(error.__cause__, _PROMPT_FAULTS):
                raise PromptError(one_line(error.__cause__)) from error
            raise
        except _PROMPT_FAULTS as error:
            raise PromptError(one_line(error)) from error
        if output is None or not output.finished:
            raise EngineDiedError("the engine ended a request without finishing it")
        return output

    async def init_transfer(self, plan: TransferPlan, deadline_seconds: float) -> None:
        info = {
            **{name: value for name, value in asdict(plan).items() if name not in ("tensors", "adapter")},
            "tensors": _listed(plan.tensors),
            "deadline_seconds": deadline_seconds,
        }
        if plan.adapter:
            rank, alpha = plan.adapter.rank, plan.adapter.alpha
            info["adapter"] = {"rank": rank, "alpha": alpha, "tensors": _listed(plan.adapter.tensors)}
        await _engine_call(
            "joining the transfer group", self._llm.init_weight_transfer_engine(WeightTransferInitRequest(info))
        )

    async def start_update(self, *, adapter_only: bool = False) -> None:
        if self._sends_adapters:
            announcing = self._llm.collective_rpc("mmr1_announce", args=(adapter_only,))
            await _engine_call("announcing the update", announcing)
        await _engine_call("starting the update", self._llm.start_weight_update())

    async def receive_update(self, deadline_seconds: float) -> list[tuple[str, int]]:
        request = WeightTransferUpdateRequest({"deadline_seconds": deadline_seconds})
        # Asked for together: the engine takes its calls in this order, and need not hear of each answer first.
        _, report = await asyncio.gather(
            _engine_call("receiving the weights", self._llm.update_weights(request)),
            self._report("mmr1_receive_report"),
        )
        _log.info(
            "weights_received", **{f"{what}_seconds": round(spent, 4) for what, spent in report["seconds"].items()}
        )
        return [(name, int(digest)) for name, digest in report["fingerprints"]]

    async def finish_update(self) -> WriteReport:
        acts = [_engine_call("finishing the update", self._llm.finish_weight_update())]
        if self._sends_adapters:
            acts.append(_engine_call("placing the adapters", self._llm.collective_rpc("mmr1_place_adapter")))
        # In this order, as in `receive_update`. vLLM resets none of the caches itself. The encoder's outputs are keyed
        # by the image alone: weights do not enter. The processor's cache has pixels, which no weights have made; but it
        # is in two processes, and a request that ended between them leaves them unlike.
        *_, report, _, _, is_reset = await asyncio.gather(
            *acts,
            self._report("mmr1_write_report"),
            _engine_call("resetting the multimodal cache", self._llm.reset_mm_cache()),
            _engine_call("resetting the encoder cache", self._llm.reset_encoder_cache()),
            _engine_call("resetting the prefix cache", self._llm.reset_prefix_cache()),
        )
        if not is_reset:
            raise WeightUpdateError("resetting the prefix cache: vLLM says that blocks are still in use")
        self._adapter = adapter_request(report["adapter_id"])
        return WriteReport(report["num_parameters"], tuple(report["unwritten"]), report["num_packed_copies_refreshed"])

    async def abort_update(self) -> None:
        await _engine_call("aborting the update", self._llm.collective_rpc("mmr1_abort_update"))

    async def _report(self, name: str) -> dict[str, Any]:
        """What the update did on every worker. Each got every tensor, and keeps a part of it."""
        reports = await _engine_call("reading the report", self._llm.collective_rpc(name))
        first = dict(reports[0])
        for rank, report in enumerate(reports):
            if report.get("fingerprints") != first.get("fingerprints"):
                raise WeightUpdateError(f"worker {rank} of this engine received other bytes than worker 0")
        return {**first, "unwritten": sorted({name for report in reports for name in report.get("unwritten", ())})}

    async def shutdown(self) -> None:
        """End the engine's processes. Nothing may be running."""
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()  # or it reports the end that we ask for as an engine's death
        await asyncio.to_thread(self._llm.shutdown, ENGINE_EXIT_SECONDS)


def engine_arguments(config: RunConfig, server_id: str) -> AsyncEngineArgs:
    """What the run's options mean to vLLM. On CUDA, graphs stay on; on a CPU there is nothing to capture."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    max_model_len = config.max_prompt_length + config.max_completion_length
    options: dict[str, Any] = {} if on_cpu else {"gpu_memory_utilization": config.gpu_memory_utilization}
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


def rollout(completion: CompletionOutput, version: PolicyVersion) -> Rollout:
    token_ids = tuple(completion.token_ids)
    steps = completion.logprobs or []
    return Rollout(
        token_ids=token_ids,
        logprobs=tuple(step[token].logprob for token, step in zip(token_ids, steps, strict=True)),
        spans=(VersionSpan(version, 0, len(token_ids)),),
        text=completion.text,
        finish_reason=FinishReason(completion.finish_reason),
    )


def _listed(tensors: Sequence[TensorSpec]) -> list[list[Any]]:
    return [[spec.name, spec.dtype, list(spec.shape)] for spec in tensors]


async def _engine_call(doing: str, call: Awaitable[Any]) -> Any:
    """Any failure in the engine's processes reaches us as a bare Exception with their message."""
    try:
        return await call
    except asyncio.CancelledError:
        raise
    except EngineDeadError as error:
        raise EngineDiedError(f"the engine died while {doing}") from error
    except Exception as error:
        raise WeightUpdateError(f"{doing}: {one_line(error)}") from error
