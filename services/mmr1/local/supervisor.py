"""Runs a Plan: start in dependency order, watch, and stop in the opposite order, whatever the reason.

Redis, then the reward server and the rollout servers, then the learner, whose end is the run's end. Rollout engines
load while the learner imports: the learner itself waits for them to accept weights.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import RedisError

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.lifecycle import StopRequest
from mmr1.local.guard import Guard
from mmr1.local.logs import MergedLog
from mmr1.local.plan import Plan
from mmr1.local.service import Service, ServiceFailedError, ServiceSpec
from mmr1.redis_access import RedisAccess
from mmr1.streams import read_ledger

LEDGER_SECONDS = 5.0


class Supervisor:
    """One run of a plan, inside a running event loop."""

    def __init__(
        self, plan: Plan, log: MergedLog, guard: Guard, max_restarts: int, before_redis_stops: Callable[[], None]
    ) -> None:
        self._log = log
        self._before_redis_stops = before_redis_stops

        def service(spec: ServiceSpec) -> Service:
            return Service(spec, guard, log, max_restarts)

        self._redis = [service(plan.redis)] if plan.redis else []
        self._reward = [service(plan.reward)] if plan.reward else []
        self._rollouts = [service(spec) for spec in plan.rollouts]
        self._learner = service(plan.learner)
        self._lives: dict[Service, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Return when the learner's work is done.

        Raises:
            ConfigurationError: a service says that its configuration is wrong.
            ServiceFailedError: a service has used up its restarts.
        """
        await self._start(self._redis, wait=True)
        await self._start(self._rollouts, wait=False)
        await self._start(self._reward, wait=True)
        await self._start([self._learner], wait=False)
        await self._watch(self._lives[self._learner])

    async def stop(self, urgent: asyncio.Event) -> None:
        """End everything that was started, dependants first. Nothing is alive afterwards."""
        for life in self._lives.values():
            life.cancel()
        await asyncio.gather(*self._lives.values(), return_exceptions=True)
        for services in ([self._learner], self._rollouts, self._reward):
            await asyncio.gather(*(service.stop(urgent) for service in services))
        if all(service.running for service in self._redis):
            self._before_redis_stops()
        await asyncio.gather(*(service.stop(urgent) for service in self._redis))

    async def _start(self, services: list[Service], *, wait: bool) -> None:
        for service in services:
            self._log.say(f"starting {service.spec.name}")
            self._lives[service] = asyncio.create_task(service.run())
        if wait:
            for service in services:
                await self._watch(asyncio.create_task(service.is_ready.wait()))

    async def _watch(self, awaited: asyncio.Task[None] | asyncio.Task[bool]) -> None:
        """Wait for one task; a service that fails for good meanwhile raises its error here."""
        while not awaited.done():
            await asyncio.wait([awaited, *self._lives.values()], return_when=asyncio.FIRST_COMPLETED)
            for life in self._lives.values():
                if life.done():
                    life.result()
        awaited.result()


async def supervise(config: RunConfig, plan: Plan, log: MergedLog) -> int:
    """Run the plan until it is done, fails or is interrupted, and leave nothing behind.

    Returns:
        0: the learner has finished. 1: a service failed too often, or the accounts do not balance. 130, 143: stopped by
        Ctrl-C or SIGTERM.

    Raises:
        ConfigurationError: a service ended with exit code 2.
    """
    stop = StopRequest()
    balanced = True

    def keep_ledger() -> None:
        nonlocal balanced
        balanced = write_ledger(RedisAccess.from_config(config), config.run, config.run_dir / "ledger.json", log)

    with Guard() as guard:
        supervisor = Supervisor(plan, log, guard, config.max_restarts, keep_ledger)
        work = asyncio.create_task(supervisor.run())
        interrupted = asyncio.create_task(stop.requested.wait())
        try:
            await asyncio.wait([work, interrupted], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                again = "; Ctrl-C again to stop at once" if stop.signal is signal.SIGINT else ""
                log.warn(f"stopping{again}")
                work.cancel()
                return stop.exit_code
            work.result()
        except ServiceFailedError as error:
            log.warn(f"error: {error}")
            return 1
        finally:
            interrupted.cancel()
            await supervisor.stop(stop.urgent)
    return 0 if balanced else 1


def write_ledger(access: RedisAccess, run: str, path: Path, log: MergedLog) -> bool:
    """The run's accounts, for the report. A Redis that does not answer is said, and leaves no file.

    False: they do not balance, and that was said.
    """
    with access.client(socket_timeout=LEDGER_SECONDS) as redis:
        try:
            ledger = read_ledger(redis, run)
        except RedisError as error:
            log.warn(f"no {path.name}: Redis does not answer ({error})")
            return True
    path.write_text(json.dumps(ledger.as_dict(), indent=2) + "\n")
    try:
        ledger.require_balance(run)
    except ConfigurationError as error:
        log.warn(f"error: {error}")
    return ledger.balanced
