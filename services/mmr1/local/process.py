"""One child process in a process group of its own: start, follow its output, signal, reap. Linux (pidfd) only.

Knows nothing of services, restarts or readiness. No threads: the exit of a child is a readable file descriptor. A child
is left as a zombie until its whole group is killed, so its group id cannot be reused under our signals.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmr1.local.guard import Guard

OUTPUT_CHUNK_BYTES = 64 * 1024
OUTPUT_DRAIN_SECONDS = 2.0


class ChildProcess:
    """A started program. `wait()` gives its exit code; nothing of its group is alive after that."""

    def __init__(self, popen: subprocess.Popen[bytes], guard: Guard, on_line: Callable[[str], None]) -> None:
        self._popen = popen
        self._guard = guard
        guard.add(popen.pid)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._leader_ended)
        self._output = asyncio.create_task(self._pump(on_line))

    @classmethod
    def start(
        cls, command: Sequence[str], environment: Mapping[str, str], guard: Guard, on_line: Callable[[str], None]
    ) -> ChildProcess:
        """Start `command`; each line of its output, both streams merged, goes to `on_line`."""
        popen = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(popen, guard, on_line)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return not self._ended.done()

    async def wait(self) -> int:
        """The exit code, negative for a signal, once the output has been read to its end."""
        code = await asyncio.shield(self._ended)
        await asyncio.shield(self._output)
        return code

    async def stop(self, deadline_seconds: float) -> int:
        """SIGTERM to the program, SIGKILL to its whole group at the deadline. Returns its exit code."""
        if self.running:
            os.kill(self.pid, signal.SIGTERM)
            await asyncio.wait([self._ended], timeout=deadline_seconds)
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group, now."""
        if self.running:
            os.killpg(self.pid, signal.SIGKILL)

    def _leader_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        # Not reaped yet, so the group exists: what the program has left behind ends here.
        os.killpg(self._popen.pid, signal.SIGKILL)
        code = self._popen.wait()
        self._guard.remove(self._popen.pid)
        self._ended.set_result(code)

    async def _pump(self, on_line: Callable[[str], None]) -> None:
        assert self._popen.stdout is not None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=OUTPUT_CHUNK_BYTES)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._popen.stdout)
        rest = b""
        try:
            while chunk := await self._read(reader):
                *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                for line in lines:
                    _emit(line, on_line)
                if len(rest) > OUTPUT_CHUNK_BYTES:
                    _emit(rest, on_line)
                    rest = b""
            _emit(rest, on_line)
        finally:
            transport.close()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """A chunk, or nothing at the end, which a stray process that holds the pipe cannot delay for ever."""
        reading = asyncio.ensure_future(reader.read(OUTPUT_CHUNK_BYTES))
        either: list[asyncio.Future[Any]] = [reading, self._ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await asyncio.wait([reading], timeout=OUTPUT_DRAIN_SECONDS)
        if not reading.done():
            reading.cancel()
            return b""
        return reading.result()


def _emit(line: bytes, on_line: Callable[[str], None]) -> None:
    text = line.decode(errors="replace").rstrip()
    if text:
        on_line(text)
