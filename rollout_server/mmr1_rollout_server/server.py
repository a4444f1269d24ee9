"""One rollout server from its first health answer to its last: puts the parts together and takes them apart.

It knows which parts there are and in which order they start and end. What they do is their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import psutil
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1.lifecycle import StopRequest
from mmr1.redis_access import RedisAccess
from mmr1.reward_access import reward_client
from mmr1.streams import PromptConsumer
from mmr1.wire.v1 import rollout_pb2
from mmr1.wire.v1.rollout_pb2_grpc import add_RolloutServiceServicer_to_server
from mmr1_rollout_server.auth import interceptors, server_credentials
from mmr1_rollout_server.breaker import Breaker
from mmr1_rollout_server.errors import DeadlinePassedError
from mmr1_rollout_server.metrics import Metrics
from mmr1_rollout_server.scoring import Scorer
from mmr1_rollout_server.servicer import RolloutServicer
from mmr1_rollout_server.states import State
from mmr1_rollout_server.weights import Policy
from mmr1_rollout_server.worker import PromptWorker

if TYPE_CHECKING:
    from mmr1_rollout_server.engine import Engine

SERVICE = rollout_pb2.DESCRIPTOR.services_by_name["RolloutService"].full_name
WEIGHTS_SERVICE = f"{SERVICE}/weights"
ENGINE_DIED = 1
ENGINE_STUCK = 70
DRAIN_SECONDS = 20.0
REWARD_PROBE_SECONDS = 2.0
REDIS_SECONDS = 10.0  # an answer later than this is none
_MAX_MESSAGE_BYTES = 256 * 2**20
_WATCH_SECONDS = 0.5
# States in which the weight verbs are answered with more than a refusal.
_ACCEPTING = {State.ACCEPTS_WEIGHTS, State.UPDATING, State.PAUSED, State.SERVES, State.BROKEN}

_log = structlog.get_logger(__name__)


@dataclass
class Server:
    """The parts of one server, as far as they have been started."""

    config: RunConfig
    server_id: str
    port: int
    metrics_port: int
    metrics: Metrics = field(default_factory=Metrics)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    serves_base: bool = False  # for evaluation: calls alone, answered with the weights of the model's folder

    def __post_init__(self) -> None:
        self.images = ImageStore(self.config.resolved_image_root)
        self.policy = Policy(self.config.run, on_change=self._on_change, on_stuck=_exit_stuck)
        self.metrics.running.set_function(lambda: self.policy.admission.num_running)
        self.breaker = Breaker(on_change=self._on_reward_change)
        self.servicer = RolloutServicer(
            self.policy, self.images, self.metrics, self.config, self.server_id, self.breaker
        )
        self.health = health.aio.HealthServicer()
        self.credentials = server_credentials(self.config)
        self.grpc = grpc.aio.server(
            interceptors=interceptors(self.config),
            options=[
                ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ],
        )
        self.worker: PromptWorker | None = None

    async def run(self) -> int:
        """Serve until told to stop. Returns the exit code: 0 after SIGTERM, 1 when the engine died.

        Raises:
            ConfigurationError: something must be changed first.
        """
        exit_code = ENGINE_DIED
        try:
            exit_code = await self._run()
        finally:  # nothing of the engine outlives this process, however it ends
            _end_children(exit_code)
        return exit_code

    async def _run(self) -> int:
        stop = StopRequest()
        await self._listen()
        health_loop = asyncio.create_task(self._publish_health())
        engine = await self._load_engine(stop)
        if engine is None:
            return 0
        self.servicer.attach(engine)
        self.policy.engine_ready(engine)
        serve = self._serve_calls if self.serves_base else self._serve_prompts
        serving = asyncio.create_task(serve(engine, stop))
        urgent = asyncio.create_task(stop.urgent.wait())
        await asyncio.wait({serving, urgent}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            _log.warning("stopping_at_once")
            return 0
        died = engine.is_dead
        serving.result()
        await self.grpc.stop(grace=1.0)
        health_loop.cancel()
        await engine.shutdown()
        _log.info("stopped", engine_died=died)
        return ENGINE_DIED if died else 0

    async def _listen(self) -> None:
        add_RolloutServiceServicer_to_server(self.servicer, self.grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.grpc)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self.grpc)
        try:
            if self.credentials is None:
                self.grpc.add_insecure_port(f"{self.config.host}:{self.port}")
            else:
                self.grpc.add_secure_port(f"{self.config.host}:{self.port}", self.credentials)
            self.metrics.listen(self.config.host, self.metrics_port)
        except (RuntimeError, OSError) as error:
            raise ConfigurationError(
                f"cannot listen on {self.config.host}, ports {self.port} and {self.metrics_port}: {error}"
            ) from None
        await self.grpc.start()
        _log.info("listening", address=self.address, metrics_port=self.metrics_port, tls=self.credentials is not None)

    async def _load_engine(self, stop: StopRequest) -> Engine | None:
        """Load in a thread, so that health is answered meanwhile. None: told to stop before it was up."""

        def load() -> Engine:
            from mmr1_rollout_server.engine import Engine

            return Engine.load(self.config, self.server_id)

        loading = asyncio.create_task(asyncio.to_thread(load))
        stopping = asyncio.create_task(stop.requested.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return loading.result() if loading.done() else None

    async def _serve_calls(self, engine: Engine, stop: StopRequest) -> None:
        """Answer Generate until told to stop or until the engine is gone; then drain. No queue, no weights."""
        self.policy.serve_base()
        await self._watch(engine, stop, asyncio.Event())
        with contextlib.suppress(DeadlinePassedError):
            await self.policy.admission.wait_idle(0.0 if engine.is_dead else DRAIN_SECONDS)

    async def _serve_prompts(self, engine: Engine, stop: StopRequest) -> None:
        """Take prompts until told to stop or until the engine is gone; then drain."""
        options = self.config
        async with (
            RedisAccess.from_config(options).asyncio_client(socket_timeout=REDIS_SECONDS) as redis,
            reward_client(options, options.reward_deadline_seconds) as client,
            reward_client(options, REWARD_PROBE_SECONDS) as prober,
        ):
            consumer = PromptConsumer(
                redis,
                options.run,
                self.server_id,
                claim_idle_seconds=options.claim_idle_seconds,
                max_deliveries=options.max_deliveries,
            )
            scorer = Scorer(client, prober, self.breaker)
            self.worker = PromptWorker(
                consumer, self.images, engine, self.policy, scorer, self.metrics, options, self.address
            )
            ending = asyncio.Event()
            watch = asyncio.create_task(self._watch(engine, stop, ending))
            try:
                await self.worker.run(ending, DRAIN_SECONDS)
            finally:
                watch.cancel()

    async def _watch(self, engine: Engine, stop: StopRequest, ending: asyncio.Event) -> None:
        """Close admission as soon as there is a reason to end."""
        stopping = asyncio.create_task(stop.requested.wait())
        while not stopping.done() and not engine.is_dead:
            await asyncio.wait({stopping}, timeout=_WATCH_SECONDS)
        stopping.cancel()
        _log.info("draining", reason="the engine died" if engine.is_dead else "told to stop")
        self.policy.drain()
        ending.set()

    @property
    def address(self) -> str:
        """Where others reach this server."""
        return f"{self.config.reachable_host}:{self.port}"

    def _on_change(self) -> None:
        state, version = self.policy.state, self.policy.version
        for each in State:
            self.metrics.state.labels(each.value).set(each is state)
        self.metrics.version.set(version.number if version else 0)
        self.changed.set()
        if self.worker is not None:
            self.worker.state_changed()

    def _on_reward_change(self) -> None:
        is_open = self.breaker.is_open
        self.metrics.reward_circuit_open.set(is_open)
        self.metrics.reward_circuit_openings.inc(is_open)
        _log.warning("reward_server_lost" if is_open else "reward_server_back", reason=self.breaker.reason)

    async def _publish_health(self) -> None:
        """ "" is the process, `/weights` says that weight verbs are answered, the service itself that prompts are."""
        known = health_pb2.HealthCheckResponse
        while True:
            self.changed.clear()
            state = self.policy.state
            answers = {"": True, WEIGHTS_SERVICE: state in _ACCEPTING, SERVICE: state is State.SERVES}
            for service, serving in answers.items():
                await self.health.set(service, known.SERVING if serving else known.NOT_SERVING)
            await self.changed.wait()


def _exit_stuck(reason: str) -> None:
    """Nothing in this process can free an engine that waits in a collective: end it, the supervisor starts another."""
    _log.error("engine_stuck", reason=reason)
    sys.stdout.flush()
    os._exit(_end_children(ENGINE_STUCK))


def _end_children(exit_code: int) -> int:
    """Kill what the engine has left running, so that this process leaves no orphan. Returns `exit_code`.

    Python's resource trackers are spared: each ends with the last process it serves, and then frees the shared memory
    that a killed engine would leave behind for good.
    """
    children = [child for child in psutil.Process().children(recursive=True) if not _is_resource_tracker(child)]
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=5)
    return exit_code


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
