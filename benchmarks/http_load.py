"""Load for a server on this machine, and what it cost: rates, latencies, processor time, memory.

It keeps a number of requests in flight over plain sockets, because a client library would cost more than the servers
that are measured. It knows no route and no service.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_LAST_ANSWERS_SECONDS = 30


@dataclass
class Load:
    """What one stretch of load gave."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the server and its workers
    latencies: list[float] = field(default_factory=list)
    num_errors: int = 0  # answers other than 200, or not those that were expected
    num_lost: int = 0  # requests without an answer

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def rate_of_cpu(self) -> float:
        """Requests in a second of processor time."""
        return len(self.latencies) / self.cpu_seconds

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[int(share * (len(self.latencies) - 1))]


class Connection(asyncio.Protocol):
    """Keeps exactly one request in flight."""

    def __init__(self, request: bytes, expected: bytes, load: Load) -> None:
        self._request = request
        self._expected = expected
        self._load = load
        self._buffer = bytearray()
        self._sent_at = 0.0
        self._stopped = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._buffer[:head_end]).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(self._buffer) < head_end + 4 + length:
            return
        self._load.latencies.append(time.perf_counter() - self._sent_at)
        if not head.startswith(b"http/1.1 200") or self._buffer[head_end + 4 :] != self._expected:
            self._load.num_errors += 1
        self._buffer.clear()
        if self._stopped:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, _: Exception | None) -> None:
        self._load.num_lost += not self._stopped or bool(self._buffer)
        self.done.set_result(None)

    def stop(self) -> None:
        """Closes once the request in flight is answered."""
        self._stopped = True


def to_request(path: str, body: bytes) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


async def drive(port: int, request: bytes, expected: bytes, seconds: float, num_connections: int) -> Load:
    """Keeps `num_connections` requests in flight for a while. Each answer's body is held against `expected`."""
    load = Load()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    connections = [
        (await loop.create_connection(lambda: Connection(request, expected, load), "127.0.0.1", port))[1]
        for _ in range(num_connections)
    ]
    await asyncio.sleep(seconds)
    load.seconds = time.perf_counter() - began
    for connection in connections:
        connection.stop()
    await asyncio.wait([connection.done for connection in connections], timeout=_LAST_ANSWERS_SECONDS)
    load.num_lost += sum(not connection.done.done() for connection in connections)
    return load


def measured(server: tuple[int, int], request: bytes, expected: bytes, seconds: float, num_connections: int) -> Load:
    """`drive`, with the processor time that the server's family spent meanwhile."""
    port, process = server
    before = sum(map(cpu_seconds, family(process).values()))
    load = asyncio.run(drive(port, request, expected, seconds, num_connections))
    load.cpu_seconds = sum(map(cpu_seconds, family(process).values())) - before
    return load


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started within inherit the core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def serving(core: int | None, *argv: str) -> Iterator[tuple[int, int]]:
    """A server as a process of its own, once it accepts connections: (port, process id)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pinned(core):
        process = subprocess.Popen([sys.executable, *argv, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{argv} ended with {process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0 and _answers(probe):
                    break
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _answers(probe: socket.socket) -> bool:
    probe.settimeout(30)
    probe.sendall(b"GET /healthz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
    return probe.recv(16).startswith(b"HTTP/1.1 200")


def family(server: int) -> dict[str, int]:
    """The server's process and its workers'."""
    with open(f"/proc/{server}/task/{server}/children", encoding="ascii") as file:
        return {"server": server} | {f"worker {one}": int(one) for one in file.read().split()}


def cpu_seconds(process: int) -> float:
    """Of all the threads that it has now."""
    nanoseconds = 0
    for thread in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{thread}/schedstat", encoding="ascii") as file:
            nanoseconds += int(file.read().split()[0])
    return nanoseconds / 1e9


def resident_megabytes(process: int) -> float:
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
