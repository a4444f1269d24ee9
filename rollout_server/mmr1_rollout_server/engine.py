"""vLLM, as this project sees it: prompts in, groups out, and the calls of a weight update.

Beside `engine_options.py`, `engine_start.py`, `first_image.py` and what runs in the engine's worker this is the only
file that imports vllm (0.26 to 0.33), and it does so when loaded, so `environment.apply` comes first. It knows nothing
of gRPC, streams, rewards, or whether a caller may sample now.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import structlog
import vllm
import vllm.exceptions
from PIL import Image
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.transformers_utils.processor import cached_processor_from_config
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError, WeightUpdateError
from mmr1.preprocessing import fingerprint
from mmr1.records import FinishReason, Group, PolicyVersion, Prompt, Rollout, Sampling, TensorSpec, VersionSpan
from mmr1_rollout_server.engine_failures import one_line
from mmr1_rollout_server.engine_options import (
    adapter_request,
    devices,
    engine_arguments,
    mm_processor_kwargs,
    sampling_params,
)
from mmr1_rollout_server.engine_start import starting
from mmr1_rollout_server.errors import EngineDiedError, PromptError
from mmr1_rollout_server.first_image import first_image_beside
from mmr1_rollout_server.transfer import TransferPlan, WriteReport

# What vLLM raises when a request itself is at fault; the first exists since the class does, the second always did.
_PROMPT_FAULTS: tuple[type[Exception], ...] = (getattr(vllm.exceptions, "VLLMClientError", ValueError), ValueError)

ENGINE_EXIT_SECONDS = 15.0  # its processes need five or six to take themselves apart; vLLM's default kills them at five

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReadyPrompt:
    """A prompt as the engine takes it: tokens and pixels."""

    prompt: Prompt
    rendered: Any


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
        with starting(config, on_cpu=current_platform.is_cpu()), first_image_beside(mm_processor_kwargs(config)):
            llm = AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=True)
        if not current_platform.is_cpu():
            # Read at each image: `rollout_threads` make images ready here, and each would take as many threads again.
            os.environ["OMP_NUM_THREADS"] = "1"
        return cls(llm, config, server_id, facts)

    @property
    def is_dead(self) -> bool:
        return bool(self._llm.errored)

    async def prepare(self, prompt: Prompt, images: Sequence[Image.Image]) -> ReadyPrompt:
        """Make tokens and pixels of a prompt, by the CPU. No weights enter: they may change before `generate`.

        Raises:
            PromptError: the prompt itself is at fault.
        """
        request: dict[str, Any] = {"prompt": prompt.text}
        if images:
            request["multi_modal_data"] = {"image": list(images)}
        if images and self._mm_processor_kwargs:
            request["mm_processor_kwargs"] = self._mm_processor_kwargs
        with _named_failures():
            # Given as it is, a prompt is made into tokens and pixels by vLLM 0.26 in our event loop, which also answers
            # gRPC and keeps leases; the renderer has threads for that in every version.
            (rendered,) = await self._llm.renderer.render_cmpl_async([request])
        return ReadyPrompt(prompt, rendered)

    async def generate(self, ready: ReadyPrompt, version: PolicyVersion) -> Group:
        """Sample the prompt's G completions under the weights that the engine holds, labelled `version`.

        Raises:
            PromptError: the prompt itself is at fault.
            EngineDiedError: the engine is gone.
        """
        begun, prompt = time.monotonic(), ready.prompt
        greedy = prompt.sampling.temperature == 0
        # Greedy completions of one prompt are all the same, and vLLM refuses to compute more than one.
        output = await self._run(ready.rendered, prompt.sampling, 1 if greedy else prompt.num_generations)
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

    async def _run(self, rendered: Any, sampling: Sampling, num_generations: int) -> RequestOutput:
        output: RequestOutput | None = None
        request_id = f"{self._server_id}-{next(self._request_numbers)}"
        with _named_failures():
            params = sampling_params(sampling, num_generations)
            asked = self._llm.generate(rendered, params, request_id, lora_request=self._adapter)
            async for output in asked:  # noqa: B007 - the last one is kept
                pass
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
        # by the image alone: weights do not enter. The cache of pixels, which no weights have made, is off; to reset it
        # would wait for images that are made ready meanwhile.
        *_, report, _, is_reset = await asyncio.gather(
            *acts,
            self._report("mmr1_write_report"),
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


@contextmanager
def _named_failures() -> Iterator[None]:
    """vLLM's exceptions as ours."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineDiedError("the engine died while sampling") from error
    except EngineGenerateError as error:
        if isinstance(error.__cause__, _PROMPT_FAULTS):
            raise PromptError(one_line(error.__cause__)) from error
        raise
    except _PROMPT_FAULTS as error:
        raise PromptError(one_line(error)) from error


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
