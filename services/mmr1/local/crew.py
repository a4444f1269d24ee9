"""Services for a while: started one after another, watched while something else works with them, and stopped.

For commands whose own work decides when it is over, as an evaluation; a run of the whole stack is `supervisor`'s part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from mmr1.local.guard import Guard
from mmr1.local.logs import MergedLog
from mmr1.local.service import Service, ServiceSpec

_T = TypeVar("_T")


class Crew:
    """What has been started, inside a running event loop."""

    def __init__(self, log: MergedLog, guard: Guard, max_restarts: int) -> None:
        self._log = log
        self._guard = guard
        self._max_restarts = max_restarts
        self._lives: dict[Service, asyncio.Task[None]] = {}

    async def start(self, specs: Sequence[ServiceSpec]) -> None:
        """Start these at the same time and return when all of them are ready.

        Raises:
            ConfigurationError: a service says that its configuration is wrong.
            ServiceFailedError: a service has used up its restarts.
        """
        services = [Service(spec, self._guard, self._log, self._max_restarts) for spec in specs]
        for service in services:
            self._log.say(f"starting {service.spec.name}")
            self._lives[service] = asyncio.create_task(service.run())
        for service in services:
            await self.watch(service.is_ready.wait())

    async def watch(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`. A service that fails for good meanwhile ends it and raises as `start` does."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait([task, *self._lives.values()], return_when=asyncio.FIRST_COMPLETED)
                for life in self._lives.values():
                    if life.done():
                        life.result()
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def stop(self, urgent: asyncio.Event) -> None:
        """End everything, what was started last first. Nothing is alive afterwards."""
        for life in self._lives.values():
            life.cancel()
        await asyncio.gather(*self._lives.values(), return_exceptions=True)
        for service in reversed(self._lives):
            await service.stop(urgent)
