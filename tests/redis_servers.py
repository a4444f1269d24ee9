"""Redis servers of a test's own: with users, and behind TLS. The redis-server of the wheel is built without TLS."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import free_port


def redis_program() -> str:
    program = shutil.which("redis-server", path=str(Path(sys.executable).parent)) or shutil.which("redis-server")
    assert program, "no redis-server: run `make setup`"
    return program


@contextlib.contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A redis-server and its port, killed at the end."""
    port = free_port()
    process = subprocess.Popen(
        [redis_program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options],
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
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=_hand_on, args=(listener.accept()[0], context, port), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _hand_on(plain: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with contextlib.suppress(OSError), plain:
        plain.settimeout(10)
        with (
            context.wrap_socket(plain, server_side=True) as caller,
            socket.create_connection(("127.0.0.1", port)) as to,
        ):
            threading.Thread(target=_copy, args=(to, caller), daemon=True).start()
            _copy(caller, to)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
