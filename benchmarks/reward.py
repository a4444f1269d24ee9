"""How fast the reward server is, in ratios of one run: to a bare echo on the same uvicorn, and to plain calls.

    python benchmarks/reward.py                  # about 25 seconds; server and worker on one core, the load on another
    python benchmarks/reward.py --soak 1200      # full load; slope of memory, errors, lost items

It needs what the server needs and no more. Absolute numbers are this machine's; only ratios within one run mean
anything elsewhere. Besides the clock it reads the processor time of the processes, which a busy machine disturbs less.
It measures no quality of rewards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

from mmr1_reward_server.api import Item
from mmr1_reward_server.plugins import build_registry
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.scoring import score_item

NUM_CONNECTIONS = 32
BATCH_ITEMS = 256
NUM_BATCHES = 4  # in flight
MAX_RESPONSE_CHARS = 100_000


@dataclass
class Load:
    """What one stretch of load gave."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the server and its workers
    latencies: list[float] = field(default_factory=list)
    num_errors: int = 0
    num_lost: int = 0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def rate_of_cpu(self) -> float:
        """Requests in a second of processor time."""
        return len(self.latencies) / self.cpu_seconds

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[int(share * (len(self.latencies) - 1))]


class _Connection(asyncio.Protocol):
    """Keeps exactly one request in flight: a client library would cost more than the server under test."""

    def __init__(self, request: bytes, check: Callable[[bytes], bool], load: Load) -> None:
        self._request = request
        self._check = check
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
        if not head.startswith(b"http/1.1 200") or not self._check(bytes(self._buffer[head_end + 4 :])):
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
        self._stopped = True


def to_request(path: str, body: bytes) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


async def drive(
    port: int, request: bytes, seconds: float, num_connections: int, check: Callable[[bytes], bool] = lambda body: True
) -> Load:
    """Keeps `num_connections` requests in flight for a while."""
    load = Load()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    connections = [
        (await loop.create_connection(lambda: _Connection(request, check, load), "127.0.0.1", port))[1]
        for _ in range(num_connections)
    ]
    await asyncio.sleep(seconds)
    load.seconds = time.perf_counter() - began
    for connection in connections:
        connection.stop()
    await asyncio.wait([connection.done for connection in connections], timeout=30)
    load.num_lost += sum(not connection.done.done() for connection in connections)
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
            assert process.poll() is None, f"{argv} ended with {process.returncode}"
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


def reward_server(core: int | None, workers: int) -> Any:
    return serving(core, "-m", "mmr1_reward_server", "--workers", str(workers))


def serve_echo(port: int) -> None:
    """The bare endpoints that the server is measured against."""
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/json")
    async def echo_json(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @app.post("/bytes")
    async def echo_bytes(request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")

    uvicorn.run(app, port=port, log_config=None, access_log=False, server_header=False)


def mixed_items(registry: Registry, num_items: int) -> list[dict[str, Any]]:
    """Every task's example in turn."""
    examples = [task.example.item.model_dump(mode="json") for task in registry if task.example is not None]
    return [{**examples[number % len(examples)], "id": str(number)} for number in range(num_items)]


def single_item(registry: Registry) -> bytes:
    example = registry["counting"].example
    assert example is not None
    return json.dumps({"items": [example.item.model_dump(mode="json")]}).encode()


def direct_rates(registry: Registry, seconds: float) -> tuple[float, float]:
    """Items a second, and a second of processor time, of `score_item` in a loop and nothing else."""
    items = [Item.model_validate(one) for one in mixed_items(registry, BATCH_ITEMS)]
    for item in items[: len(registry)]:
        score_item(registry, item, max_response_chars=MAX_RESPONSE_CHARS)
    num_items = 0
    began, cpu_began = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for item in items:
            score_item(registry, item, max_response_chars=MAX_RESPONSE_CHARS)
        num_items += len(items)
    return num_items / (time.perf_counter() - began), num_items / (time.process_time() - cpu_began)


def compare(server_core: int, load_core: int, rounds: int, seconds: float) -> None:
    registry = build_registry()
    body = single_item(registry)
    batch = json.dumps({"items": mixed_items(registry, BATCH_ITEMS)}).encode()
    os.sched_setaffinity(0, {load_core})
    direct: list[tuple[float, float]] = []
    singles: dict[str, list[Load]] = {"/bytes": [], "/json": [], "/v1/score": []}
    batches: list[Load] = []
    with serving(server_core, __file__, "--serve-echo") as echo, reward_server(server_core, 1) as score:
        measured(score, "/v1/score", batch, 0.5, 1)  # what tasks load on first use is not what is measured
        for _ in range(rounds):
            for path, loads in singles.items():
                loads.append(measured(score if path == "/v1/score" else echo, path, body, seconds, NUM_CONNECTIONS))
            batches.append(measured(score, "/v1/score", batch, seconds, NUM_BATCHES))
            with pinned(server_core):
                direct.append(direct_rates(registry, seconds))
    _report_singles(singles)
    _report_batches(batches, direct)
    num_errors = sum(load.num_errors + load.num_lost for loads in (*singles.values(), batches) for load in loads)
    print(f"errors and lost requests: {num_errors}")


def measured(server: tuple[int, int], path: str, body: bytes, seconds: float, num_connections: int) -> Load:
    port, process = server
    before = sum(map(cpu_seconds, family(process).values()))
    load = asyncio.run(drive(port, to_request(path, body), seconds, num_connections))
    load.cpu_seconds = sum(map(cpu_seconds, family(process).values())) - before
    return load


def _report_singles(singles: dict[str, list[Load]]) -> None:
    columns = f"{'requests/s':>12}{'per CPU s':>12}{'p50 ms':>9}{'p99 ms':>9}{'p99/p50':>9}"
    print(f"{f'one item, {NUM_CONNECTIONS} connections':<28}{columns}")
    for path, loads in singles.items():
        rate = statistics.median(load.rate for load in loads)
        of_cpu = statistics.median(load.rate_of_cpu for load in loads)
        p50, p99 = (statistics.median(load.percentile(share) for load in loads) for share in (0.5, 0.99))
        print(f"{path:<28}{rate:>12.0f}{of_cpu:>12.0f}{1e3 * p50:>9.2f}{1e3 * p99:>9.2f}{p99 / p50:>9.2f}")
    for path in ("/bytes", "/json"):
        pairs = list(zip(singles["/v1/score"], singles[path], strict=True))
        _ratio(f"score to echo of {path[1:]}", [score.rate / echo.rate for score, echo in pairs])
        _ratio("  by processor time", [score.rate_of_cpu / echo.rate_of_cpu for score, echo in pairs])


def _report_batches(batches: list[Load], direct: list[tuple[float, float]]) -> None:
    rate = statistics.median(load.rate for load in batches) * BATCH_ITEMS
    plain = statistics.median(rate for rate, _ in direct)
    print(f"batches of {BATCH_ITEMS} mixed items: {rate:.0f} items/s; plain calls: {plain:.0f} items/s")
    pairs = list(zip(batches, direct, strict=True))
    _ratio("batches to plain calls", [load.rate * BATCH_ITEMS / plain for load, (plain, _) in pairs])
    _ratio("  by processor time", [load.rate_of_cpu * BATCH_ITEMS / plain for load, (_, plain) in pairs])


def _ratio(title: str, ratios: list[float]) -> None:
    print(f"{title:<28}{statistics.median(ratios):>12.2f}   of each round: {_listed(ratios)}")


def _listed(ratios: list[float]) -> str:
    return " ".join(f"{ratio:.2f}" for ratio in ratios)


def soak(seconds: float, workers: int) -> None:
    """Full load of batches of mixed items; prints what grew and what went missing."""
    registry = build_registry()
    items = mixed_items(registry, BATCH_ITEMS)
    wanted = [item["id"] for item in items]

    def whole(body: bytes) -> bool:
        return [result["id"] for result in json.loads(body)["results"]] == wanted

    with reward_server(None, workers) as (port, server):
        memory: dict[str, list[tuple[float, float]]] = {}

        async def run() -> Load:
            request = to_request("/v1/score", json.dumps({"items": items}).encode())
            driving = asyncio.ensure_future(drive(port, request, seconds, 8, whole))
            began = time.monotonic()
            while not driving.done():
                await asyncio.wait({driving}, timeout=max(0.2, seconds / 200))
                for name, process in family(server).items():
                    memory.setdefault(name, []).append((time.monotonic() - began, resident_megabytes(process)))
            return driving.result()

        load = asyncio.run(run())
    rate = len(load.latencies) * BATCH_ITEMS / load.seconds
    print(f"{load.seconds:.0f} s, {len(load.latencies)} batches, {rate:.0f} items/s")
    print(f"errors {load.num_errors}, lost {load.num_lost}")
    for name, points in memory.items():
        settled = [point for point in points if point[0] > seconds * 0.2]
        if len(settled) > 2:
            slope = 3600 * statistics.linear_regression(*zip(*settled, strict=True)).slope
            print(f"{name:<16}{settled[0][1]:>8.1f} MB at 20 %, {settled[-1][1]:.1f} MB at the end, {slope:+.2f} MB/h")


def family(server: int) -> dict[str, int]:
    """The server's process and its workers'."""
    with open(f"/proc/{server}/task/{server}/children", encoding="ascii") as file:
        return {"server": server} | {f"worker {one}": int(one) for one in file.read().split()}


def cpu_seconds(process: int) -> float:
    with open(f"/proc/{process}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[0]) / 1e9


def resident_megabytes(process: int) -> float:
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--workers", type=int, default=2, help="of the soak")
    parser.add_argument("--serve-echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_echo:
        serve_echo(options.port)
    elif options.soak is not None:
        soak(options.soak, options.workers)
    else:
        compare(options.server_core, options.load_core, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
