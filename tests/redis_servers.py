"""Redis servers of a test's own: with users, and behind TLS. The redis-server of the wheel is built without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.conftest import free_port


def redis_program() -> str:
    program = shutil.which("redis-server", path=str(Path(sys.executable).parent)) or shutil.which("redis-server")
    assert program, "no redis-server: run `make setup`"
    return program


@contextlib.contextmanager
def running_redis(
    folder: Path, *options: str, program: str | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A redis-server and its port, killed at the end."""
    port = free_port()
    process = subprocess.Popen(
        [
            program or redis_program(),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
            *options,
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "redis-server did not come up"
                time.sleep(0.02)
        yield process, port
    finally:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def behind_tls(port: int, certificate: tuple[Path, Path], callers_ca: Path | None = None) -> Iterator[int]:
    """The port of a TLS server that hands everything on to `port`; it asks callers for certificates of `callers_ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if callers_ca is not None:
        context.load_verify_locations(callers_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.Queue()

    async def serve() -> None:
        ended = asyncio.Event()
        server = await asyncio.start_server(partial(_hand_on, port), "127.0.0.1", 0, ssl=context)
        started.put((asyncio.get_running_loop(), ended, server.sockets[0].getsockname()[1]))
        await ended.wait()
        server.close()

    # One thread for both directions: two may not read and write one TLS connection at a time.
    relay = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    relay.start()
    loop, ended, found = started.get(timeout=10)
    yield found
    loop.call_soon_threadsafe(ended.set)
    relay.join(10)


async def _hand_on(port: int, caller: asyncio.StreamReader, to_caller: asyncio.StreamWriter) -> None:
    server, to_server = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(_copy(caller, to_server), _copy(server, to_caller))


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()
