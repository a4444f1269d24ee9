"""The way of a prompt through this server: taken from the stream, sampled, scored, published; or given back, or dead.

Three loops beside it keep the lease, the claims on held prompts, and the pace. Everything that decides about an entry
is a script in Redis; this file decides when to call which. It knows nothing of weights beyond "may sample now". What
needs none of them, tokens and pixels, is made before that is asked, and also while a version is proved. What is sampled
ahead of the proof is held here until it is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from PIL import Image
from redis.exceptions import RedisError

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import Group, Prompt
from mmr1.redis_access import RedisAccess
from mmr1.streams import Delivery, PromptConsumer
from mmr1.streams.patience import obstacle
from mmr1.telemetry import following
from mmr1.tracing import span
from mmr1.wire import SchemaVersionError
from mmr1_rollout_server.errors import EngineDiedError, NotServingError, PromptError
from mmr1_rollout_server.metrics import Metrics
from mmr1_rollout_server.redis_waits import RedisWaits
from mmr1_rollout_server.scoring import RewardOutageError, Scorer
from mmr1_rollout_server.weights import Policy

if TYPE_CHECKING:
    from mmr1_rollout_server.engine import Engine  # imports vllm

POLL_SECONDS = 0.05
RETRY_SECONDS = 1.0

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class PromptWorker:
    """Takes prompts while the policy serves, or a version is proved, at most `max_concurrent_prompts` at once."""

    def __init__(
        self,
        consumer: PromptConsumer,
        images: ImageStore,
        engine: Engine,
        policy: Policy,
        scorer: Scorer,
        metrics: Metrics,
        config: RunConfig,
        address: str,
    ) -> None:
        self._consumer = consumer
        self._images = images
        self._engine = engine
        self._policy = policy
        self._scorer = scorer
        self._metrics = metrics
        self._config = config
        self._address = address
        self._redis = RedisAccess.from_config(config)
        self._held: dict[str, Delivery] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._engine_died = False
        self._images_at = 0.0  # when images may be asked for again, after they could not be reached
        self._refusal: ConfigurationError | None = None  # another service turns us away: no waiting mends that
        self._waits = RedisWaits(metrics.redis_waits)
        self._state_changed = asyncio.Event()
        self._left = asyncio.Event()

    def state_changed(self) -> None:
        """The lease is renewed at once, so that the learner sees the new state."""
        self._state_changed.set()

    async def run(self, stop: asyncio.Event, drain_seconds: float) -> None:
        """Work until `stop`, then finish what runs within `drain_seconds` and give the rest back.

        Raises:
            ConfigurationError: Redis or the reward server does not let us in, or a prompt is of another schema.
        """
        # redis-py swallows about half of the cancellations that reach it within a command, so loops are told to end.
        background = [asyncio.create_task(loop()) for loop in (self._keep_lease, self._keep_claims)]
        probing = asyncio.create_task(self._probe_reward_server())
        try:
            await self._take_until(stop)
        finally:
            probing.cancel()
            await self._drain(drain_seconds)
            self._left.set()
            self._state_changed.set()
            await asyncio.wait(background, timeout=RETRY_SECONDS)
            # What an engine may have died of is not given back: whoever claims it counts this death.
            died = self._engine_died or self._engine.is_dead
            await self._quietly(self._register(lease_seconds=0) if died else self._consumer.leave())

    # -- loops ---------------------------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        while not self._left.is_set():
            self._state_changed.clear()
            try:
                await self._register(self._config.lease_seconds)
                self._waits.done("renewing the lease")
            except RedisError as error:
                await self._out_of_reach("renewing the lease", error)
            # Without a lease nothing is taken and no weights come: once Redis is back it is wanted at once.
            pause = RETRY_SECONDS if self._waits.any else self._config.lease_seconds / 3
            await _wait_for(self._state_changed, pause)

    async def _register(self, lease_seconds: float) -> None:
        await self._consumer.register(self._address, self._policy.state.value, self._policy.version, lease_seconds)

    async def _keep_claims(self) -> None:
        while not self._left.is_set():
            await _wait_for(self._left, RETRY_SECONDS if self._waits.any else self._config.claim_idle_seconds / 4)
            held = dict(self._held)
            try:
                kept = await self._consumer.heartbeat(list(held.values()))
            except RedisError as error:
                await self._out_of_reach("keeping claims", error)
                continue
            self._waits.done("keeping claims")
            for entry_id in held.keys() & self._held.keys() - kept:
                _log.warning("claim_lost", entry=entry_id)

    async def _probe_reward_server(self) -> None:
        while True:
            if self._scorer.breaker.is_probe_due:
                await self._scorer.probe()
            await asyncio.sleep(POLL_SECONDS)

    async def _out_of_reach(self, doing: str, error: RedisError) -> None:
        """Redis may come back, and is waited for, unless it is there and does not let us in."""
        self._refusal = self._refusal or await asyncio.to_thread(self._redis.refusal, error)
        self._waits.refused(doing, error)
        if obstacle(error):  # it answers: a master that became a replica goes on answering those who stay with it
            await self._consumer.reconnect()

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    async def _prepare(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._consumer.prepare()
                return self._waits.done("joining the run")
            except RedisError as error:
                await self._out_of_reach("joining the run", error)
                self._raise_refusal()
                await _wait_for(stop, RETRY_SECONDS)

    async def _take_until(self, stop: asyncio.Event) -> None:
        await self._prepare(stop)
        while not stop.is_set():
            self._raise_refusal()
            if not await self._take_some():
                await _wait_for(stop, RETRY_SECONDS if self._waits.any else POLL_SECONDS)

    async def _take_some(self) -> bool:
        """Take as many as there is room for; False when there was nothing to do."""
        room = self._config.max_concurrent_prompts - len(self._held)
        version = self._policy.takes
        if version is None or room <= 0:
            return False
        if self._scorer.breaker.is_open or self._engine_died or time.monotonic() < self._images_at:
            return False
        if any(delivery.num_deliveries > 1 for delivery in self._held.values()):
            return False  # its holder has died before: it runs alone, so that it ends nothing else
        try:
            deliveries = await self._consumer.take(room, version, self._config.max_off_policy_steps, self._held)
        except SchemaVersionError as error:
            raise ConfigurationError(str(error)) from error
        except RedisError as error:
            await self._out_of_reach("taking prompts", error)
            return False
        self._waits.done("taking prompts")
        for delivery in deliveries:
            self._held[delivery.entry_id] = delivery
            if delivery.num_deliveries > 1:
                _log.info("runs_alone", prompt=str(delivery.prompt.id), num_deliveries=delivery.num_deliveries)
            self._start(delivery)
        return bool(deliveries)

    # -- one prompt ----------------------------------------------------------------------------------------------

    def _start(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._carry(delivery), name=f"prompt {delivery.prompt.id}")
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("prompt_failed", task=task.get_name(), reason=f"{type(error).__name__}: {error}")

    async def _carry(self, delivery: Delivery) -> None:
        """One prompt to its end. Every way out but the engine's death says so to Redis."""
        following(prompt=delivery.prompt.id)
        try:
            group = await self._sample_and_score(delivery.prompt)
            published = await self._insist(lambda: self._consumer.publish(delivery, group))
            self._count(delivery, "published" if published else "fenced")
        except UnreachableImageError as error:
            _log.warning("image_unreachable", prompt=str(delivery.prompt.id), reason=str(error))
            self._images_at = time.monotonic() + RETRY_SECONDS
            await self._give_back(delivery)
        except ImageError as error:
            await self._bury(delivery, "image_unreadable", str(error))
        except PromptError as error:
            await self._bury(delivery, "prompt_refused", str(error))
        except RewardOutageError as error:
            _log.warning("reward_server_unreachable", reason=str(error))
            await self._give_back(delivery)
        except NotServingError:
            await self._give_back(delivery)
        except ConfigurationError as error:
            self._refusal = error
            await self._give_back(delivery)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(delivery))
            raise
        except EngineDiedError as error:
            # Not given back: this prompt may be what killed the engine. Whoever claims it counts this death.
            self._engine_died = True
            _log.error("engine_died", prompt=str(delivery.prompt.id), reason=str(error))
            await self._quietly(self._consumer.note_error(delivery, str(error)))
        except Exception as error:  # of this prompt alone, whatever it is: tried again, and given up when it goes on
            reason = f"{type(error).__name__}: {error}"
            _log.exception("prompt_failed", prompt=str(delivery.prompt.id), reason=reason)
            await self._insist(lambda: self._consumer.fail(delivery, reason))
            self._count(delivery, "failed")
        finally:
            self._held.pop(delivery.entry_id, None)

    async def _sample_and_score(self, prompt: Prompt) -> Group:
        with span("prepare", prompt.id), self._metrics.prepare_seconds.time():
            images = await asyncio.to_thread(self._open_images, prompt)
            ready = await self._engine.prepare(prompt, images)
        await self._policy.opened(ahead=True)
        if self._engine_died or self._engine.is_dead:  # it has not had this one
            raise NotServingError("the engine is gone")
        async with self._if_proved():
            with self._policy.sampling(ahead=True) as version:
                following(version=version)
                with span("generate", prompt.id, policy_version=str(version)):
                    group = await self._engine.generate(ready, version)
            self._metrics.count_tokens(group)
            with span("score", prompt.id):
                scored = await self._scorer.score(group, images[0].size if images else None)
            self._metrics.score_seconds.observe(scored.score_seconds)
        return scored

    @asynccontextmanager
    async def _if_proved(self) -> AsyncIterator[None]:
        """What the engine's weights come to counts when they are proved, a prompt's failure too.

        The engine's death counts at once: it is one, whatever has led to it.

        Raises:
            NotServingError: they are not.
        """
        proof = self._policy.proof
        try:
            yield
        except (NotServingError, EngineDiedError, RewardOutageError, ConfigurationError):
            raise  # nothing of these is the prompt's
        except Exception:
            await proof.over()
            raise
        await proof.over()

    def _open_images(self, prompt: Prompt) -> list[Image.Image]:
        return [self._images.open(image) for image in prompt.images]

    async def _bury(self, delivery: Delivery, reason: str, detail: str) -> None:
        _log.error("prompt_dead", prompt=str(delivery.prompt.id), reason=reason, detail=detail)
        await self._insist(lambda: self._consumer.dead(delivery, reason, detail))
        self._count(delivery, "dead")

    async def _give_back(self, delivery: Delivery) -> None:
        await self._insist(lambda: self._consumer.give_back(delivery))
        self._count(delivery, "given_back")

    async def _insist(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Redis comes back or this process ends; meanwhile the prompt stays ours, or is claimed by another.

        Raises:
            ConfigurationError: it is there and does not let us in.
        """
        while True:
            try:
                result = await call()
            except RedisError as error:
                await self._out_of_reach("handing prompts over", error)
                self._raise_refusal()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._waits.done("handing prompts over")
                return result

    def _count(self, delivery: Delivery, end: str) -> None:
        self._metrics.prompts.labels(end).inc()
        _log.debug("prompt_ended", prompt=str(delivery.prompt.id), end=end)

    # -- the end -------------------------------------------------------------------------------------------------

    async def _drain(self, drain_seconds: float) -> None:
        if self._running and not self._engine.is_dead:
            await asyncio.wait(self._running, timeout=drain_seconds)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=RETRY_SECONDS * 3)

    async def _quietly(self, call: Coroutine[Any, Any, object]) -> None:
        """At the end an unreachable Redis changes nothing: leases and claims run out by themselves."""
        task = asyncio.create_task(call)
        await asyncio.wait({task}, timeout=RETRY_SECONDS)
        if not task.done():
            _log.warning("redis_unreachable", doing="leaving", reason="no answer")
        elif (error := task.exception()) is not None:
            _log.warning("redis_unreachable", doing="leaving", reason=str(error))


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
