"""One supervised service: a gang of one or more processes that live, fail and start again together.

Knows processes and restarts. What a service is, which others it needs and when the run ends is `stack`'s matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmr1.errors import CONFIGURATION_ERROR, ConfigurationError
from mmr1.local.guard import Guard
from mmr1.local.logs import MergedLog
from mmr1.local.process import ChildProcess
from mmr1.local.readiness import Probe, wait_until

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
STEADY_SECONDS = 600.0  # a life that has lasted so long does not belong to the failures before it
LATECOMER_SECONDS = 1.0  # in which the rank that caused a failure may still report after the rank that noticed it
SURVIVOR_SECONDS = 3.0  # for the ranks that a failed one leaves behind: they wait for it in a collective
SHOWN_LINES = 5
OWN_PREFIX = "mmr1: error: "


class ServiceFailedError(Exception):
    """A service has used up its restarts. The message names it, the last cause and its log."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """`finishes`: exit code 0 of every process means the work is done; of any other service it is a failure."""

    name: str
    processes: tuple[ProcessSpec, ...]
    ready: Probe | None = None
    ready_deadline_seconds: float = 60.0
    stop_deadline_seconds: float = 10.0
    finishes: bool = False


@dataclass(frozen=True, slots=True)
class _Exit:
    process: str
    code: int
    detail: str = ""

    def __str__(self) -> str:
        if self.detail:
            return f"{self.process} {self.detail}"
        return (
            f"{self.process} was ended by signal {-self.code}"
            if self.code < 0
            else f"{self.process} exited with code {self.code}"
        )


class Service:
    """Runs a ServiceSpec until its work is done, it fails for good, or it is stopped."""

    def __init__(self, spec: ServiceSpec, guard: Guard, log: MergedLog, max_restarts: int) -> None:
        self.spec = spec
        self.is_ready = asyncio.Event()
        self.num_restarts = 0
        self._guard = guard
        self._log = log
        self._max_restarts = max_restarts
        self._running: dict[str, ChildProcess] = {}
        for process in spec.processes:
            log.open(process.name)

    @property
    def running(self) -> bool:
        return any(child.running for child in self._running.values())

    async def run(self) -> None:
        """Keep the service up. Returns when its work is done.

        Raises:
            ConfigurationError: a process exited with code 2; the message is its own.
            ServiceFailedError: it died more than `max_restarts` times, each time within `STEADY_SECONDS`.
        """
        while True:
            started = time.monotonic()
            cause = await self._one_life()
            if cause is None:
                return
            if cause.code == CONFIGURATION_ERROR:
                raise ConfigurationError(self._complaint(cause))
            if time.monotonic() - started > STEADY_SECONDS:
                self.num_restarts = 0
            if self.num_restarts >= self._max_restarts:
                raise ServiceFailedError(
                    f"{self.spec.name} failed {self.num_restarts + 1} times (max_restarts {self._max_restarts}); "
                    f"last: {cause}; its log: {self._log.path(cause.process)}"
                )
            delay = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**self.num_restarts)
            self.num_restarts += 1
            self._log.warn(f"{cause}; restart {self.num_restarts} of {self._max_restarts} in {delay:.0f} s")
            for line in self._log.tail(cause.process)[-SHOWN_LINES:]:
                self._log.warn(f"  {line}")
            await asyncio.sleep(delay)

    async def stop(self, urgent: asyncio.Event) -> None:
        """SIGTERM, the spec's deadline, SIGKILL; at once when `urgent` is set."""
        stopping = asyncio.gather(*(child.stop(self.spec.stop_deadline_seconds) for child in self._running.values()))
        hurry = asyncio.create_task(urgent.wait())
        either: list[asyncio.Future[Any]] = [stopping, hurry]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        for child in self._running.values():
            child.kill()
        await stopping

    async def _one_life(self) -> _Exit | None:
        """Start every process; wait for the first failure and end the rest. None: all finished with 0.

        Cancelled from outside, it leaves the processes running, for `stop`.
        """
        self._running = {process.name: self._start(process) for process in self.spec.processes}
        failure = asyncio.create_task(self._first_failure())
        readiness = asyncio.create_task(self._become_ready())
        try:
            await asyncio.wait([failure, readiness], return_when=asyncio.FIRST_COMPLETED)
            if failure.done() or readiness.result():
                cause = await failure
            else:
                seconds = self.spec.ready_deadline_seconds
                cause = _Exit(self.spec.processes[0].name, 1, f"was not ready after {seconds:.0f} s")
        finally:
            self.is_ready.clear()
            failure.cancel()
            readiness.cancel()
        await self._stop_all(min(SURVIVOR_SECONDS, self.spec.stop_deadline_seconds))
        return cause

    def _stop_all(self, deadline_seconds: float) -> asyncio.Future[list[int]]:
        return asyncio.gather(*(child.stop(deadline_seconds) for child in self._running.values()))

    def _start(self, process: ProcessSpec) -> ChildProcess:
        def keep(line: str) -> None:
            self._log.line(process.name, line)

        return ChildProcess.start(process.command, process.environment, self._guard, keep)

    async def _become_ready(self) -> bool:
        """False at the deadline."""
        started = time.monotonic()
        if self.spec.ready is not None:
            try:
                async with asyncio.timeout(self.spec.ready_deadline_seconds):
                    await wait_until(self.spec.ready)
            except TimeoutError:
                return False
            self._log.say(f"{self.spec.name} is ready after {time.monotonic() - started:.1f} s")
        self.is_ready.set()
        return True

    async def _first_failure(self) -> _Exit | None:
        """Wait for exits. Of several that come together the one with a configuration error names the cause."""
        waits = {asyncio.create_task(child.wait()): name for name, child in self._running.items()}
        pending = set(waits)
        while pending:
            finished = len(pending) < len(waits)
            done, pending = await asyncio.wait(
                pending,
                timeout=self.spec.stop_deadline_seconds if finished else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not done:
                return _Exit(waits[pending.pop()], 1, "did not end with the others")
            if all(task.result() == 0 and self.spec.finishes for task in done):
                continue
            if pending:
                late, _ = await asyncio.wait(pending, timeout=LATECOMER_SECONDS)
                done |= late
            failures = [_Exit(waits[task], task.result()) for task in waits if task in done and task.result() != 0]
            failures = failures or [_Exit(waits[task], 0) for task in done]
            return min(failures, key=lambda failed: failed.code != CONFIGURATION_ERROR)
        return None

    def _complaint(self, cause: _Exit) -> str:
        """One line for a configuration error: the process's own where it has printed one."""
        tail = self._log.tail(cause.process)
        for line in tail[-SHOWN_LINES:]:
            self._log.warn(f"  {cause.process}: {line}")
        own = [line.partition(OWN_PREFIX)[2] for line in tail if line.startswith(OWN_PREFIX)]
        return (
            f"{cause.process}: {own[-1]}"
            if own
            else f"{cause}: a wrong configuration; its log: {self._log.path(cause.process)}"
        )
