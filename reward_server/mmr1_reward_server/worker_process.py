"""One worker process as the event loop sees it: started, given frames, watched, killed, buried.

It knows nothing of requests or of other workers: what an item's fate means to its caller is the pool's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import ValidationError

from .scoring import Scored
from .worker_wire import FrameReader, Hello, Progress, decode_scored, join_items, to_frame

# A worker that reads nothing for so long, without being at an item, is stopped or swapped out.
STALL_SECONDS = 30.0

_START_SECONDS = 60.0
_SECOND_LOOK_SECONDS = 0.02  # between the two looks that must both find an item late
_PIPE_SECONDS = 0.5  # from a process's end to its pipe's: longer only if a grandchild has inherited the pipe


class WorkerStartError(Exception):
    """The process ended, or said why it cannot start, before it was ready."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker needs to know to score as the server would."""

    rewards: tuple[str, ...]
    max_response_chars: int

    def command(self, pipe: int, progress: int) -> list[str]:
        named = [part for reward in self.rewards for part in ("--reward", reward)]
        # -P: not the current folder, unless the server itself imports from there.
        return [
            *(sys.executable, "-P", "-m", "mmr1_reward_server.worker_main"),
            *("--socket", str(pipe), "--progress", str(progress), "--parent", str(os.getpid())),
            *("--max-response-chars", str(self.max_response_chars), *named),
        ]


class WorkerProcess(asyncio.Protocol):
    """`on_scored(worker, results)` is called once for each frame; raising ValueError there kills the worker."""

    def __init__(self, on_scored: Callable[[WorkerProcess, list[Scored]], None]) -> None:
        self._on_scored = on_scored
        self._frames = FrameReader()
        self._hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._pipe_closed = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._progress: Progress | None = None
        self._sent_at = 0.0
        self._busy = False
        self.num_sent = 0
        self.killed_for: str | None = None
        self.late_position: int | None = None
        self._seen_late: tuple[int, float] | None = None

    async def start(self, options: WorkerOptions) -> None:
        """Returns when the process is ready for items. Raises WorkerStartError; nothing is left running then."""
        try:
            await self._launch(options)
        except OSError as error:  # no more descriptors, processes or memory
            self.kill("start_failed")
            raise WorkerStartError(f"no process could be started: {error.strerror or error}") from None
        try:
            async with asyncio.timeout(_START_SECONDS):
                hello = await self._hello
        except TimeoutError:
            self.kill("start_failed")
            await self.ended()
            raise WorkerStartError(f"it was not ready within {_START_SECONDS:g} s") from None
        if hello.problem is not None:
            await self.ended()
            raise WorkerStartError(hello.problem)

    async def _launch(self, options: WorkerOptions) -> None:
        """Starts the process and connects to it. Raises OSError; no descriptor is left open then."""
        with contextlib.ExitStack() as passed, contextlib.ExitStack() as kept:
            ours, theirs = socket.socketpair()
            kept.callback(ours.close)
            passed.callback(theirs.close)
            descriptor = Progress.new_descriptor()
            passed.callback(os.close, descriptor)
            self._progress = Progress(descriptor)
            self._process = await asyncio.create_subprocess_exec(
                *options.command(theirs.fileno(), descriptor),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), descriptor),
                env=_environment(),
            )
            passed.close()
            await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
            kept.pop_all()  # the connection's from here on

    def send(self, items: Sequence[bytes]) -> None:
        """One frame of encoded items; the next may follow when all of its results have come."""
        assert self._transport is not None
        frame = to_frame(join_items(items))
        self._busy = True
        self._seen_late = None
        self._sent_at = time.monotonic()
        self.num_sent += len(items)
        self._transport.write(frame)

    def rest(self) -> None:
        """All results of the frame have come."""
        self._busy = False

    def due_in(self, deadline_seconds: float) -> float | None:
        """Seconds until the item in hand must be done, not positive when it is late; None when there is none."""
        if not self._busy or self._progress is None or self.killed_for is not None:
            return None
        now = time.monotonic()
        seen = position, counts_from = self._progress.look()
        if position < 0:  # it has not taken up the frame yet, or is sending the last results
            left = self._sent_at + deadline_seconds + STALL_SECONDS - now
        else:
            left = counts_from + deadline_seconds - now
        if left > 0:
            return min(left, deadline_seconds) if position < 0 else left
        if seen != self._seen_late:  # it may be the whole machine that stood still: look once more
            self._seen_late = seen
            return _SECOND_LOOK_SECONDS
        self.late_position = position if position >= 0 else None
        return left

    @property
    def position(self) -> int | None:
        """Which item of its frame the process is scoring, or was when it died."""
        position = self._progress.look()[0] if self._progress else -1
        return position if position >= 0 else None

    def kill(self, cause: str) -> None:
        self.killed_for = self.killed_for or cause
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def close_pipe(self) -> None:
        """A process that is not in the middle of an item ends by itself."""
        if self._transport is not None:
            self._transport.close()

    async def ended(self) -> None:
        """Returns when the process has ended and all that it had sent has been read."""
        if self._process is None:
            return
        await self._process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PIPE_SECONDS):
                await self._pipe_closed.wait()
        if self._transport is not None:
            self._transport.abort()

    @property
    def end(self) -> str:
        """How the process ended, in words."""
        code = self._process.returncode if self._process else None
        if code is None:
            return "it did not end"
        if code >= 0:
            return f"it ended with exit code {code}"
        if self.killed_for == "nonsense":
            return "it was ended for what it wrote to the server: does a scorer write to descriptors not its own?"
        memory = "; was it out of memory?" if code == -signal.SIGKILL and self.killed_for is None else ""
        return f"it was ended by {signal.Signals(-code).name}{memory}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if self.killed_for == "nonsense":
            return  # nor is anything after it to be believed
        try:
            for payload in self._frames.feed(data):
                if not self._hello.done():
                    self._hello.set_result(Hello.model_validate_json(payload))
                else:
                    self._on_scored(self, decode_scored(payload))
        except (ValidationError, ValueError):  # a scorer has written to a descriptor that is not its own
            self.kill("nonsense")

    def connection_lost(self, _: Exception | None) -> None:
        self._pipe_closed.set()
        if not self._hello.done():
            self._hello.set_result(Hello(problem="it ended before it was ready"))


def _environment() -> dict[str, str]:
    """The server's own, with its import path: what the server can import, a worker can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
