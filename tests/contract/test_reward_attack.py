"""The reward server against clients that mean ill: over real sockets, against a real process."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BODY_SECONDS = 1.0
GOOD = {"id": "1", "task": "counting", "response": "<answer>3</answer>", "solution": 3}


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    log: list[str] = field(default_factory=list)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def send(self, data: bytes) -> bytes:
        """All that the server answers until it closes the connection, as it must in the end."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            return read_all(connection)

    def post(self, body: bytes, path: str = "/v1/score") -> tuple[int, bytes]:
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = self.send(head.encode() + body)
        return status(answer), answer.partition(b"\r\n\r\n")[2]

    def num_descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def read_all(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(2**16):
            parts.append(part)
    return b"".join(parts)


def status(answer: bytes) -> int:
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(match.group(1)) if match else 0


def request_of(*items: dict[str, object]) -> bytes:
    return json.dumps({"items": items}).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """In the end it must still score, hold no descriptor more than at first, and have logged no failure."""
    options = ("--port", "0", "--workers", "1", "--access-log", "--body-seconds", str(BODY_SECONDS))
    limits = ("--max-body-bytes", "10000000", "--max-pending-bytes", "20000000")
    command = [sys.executable, "-m", "mmr1_reward_server", *options, *limits]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    listening = next(filter(None, (re.search(r"event=listening .*port=(\d+)", line) for line in process.stdout)))
    server = Server(process, int(listening.group(1)))
    reader = threading.Thread(target=lambda: server.log.extend(process.stdout or ()), daemon=True)
    reader.start()
    assert server.post(request_of(GOOD))[0] == 200
    descriptors = server.num_descriptors()
    yield server
    assert server.post(request_of(GOOD))[0] == 200
    assert server.num_descriptors() <= descriptors + 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    reader.join(5)
    assert [line for line in server.log if "level=error" in line or "traceback" in line] == []
    assert {re.search(r" event=(\S+|\".*?\") service=reward", line) is not None for line in server.log} == {True}


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH"])
def test_other_methods(server: Server, method: str) -> None:
    assert status(server.send(f"{method} /v1/score HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())) == 405


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/%2e%2e/v1/tasks", "*"),
        *("/get_reward/%2e%2e", "/get_reward/..%2fetc", "/get_reward/%00", "/get_reward/%ff", "/" + "a" * 60_000),
        "/get_reward/%0d%0aevent=forged%20level=error",
    ],
)
def test_no_path_is_opened_and_no_line_forged(server: Server, path: str) -> None:
    verb = "POST" if path.startswith("/get_reward") else "GET"
    answer = server.send(f"{verb} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert (status(answer), b"root:" in answer) == (404, False)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("Content-Length: -5", 400),
        ("Content-Length: 5\r\nContent-Length: 6", 400),
        ("Content-Length: 1000", 408),
        ("Transfer-Encoding: gzip", 400),
        ("X: a\nevent=forged", 400),
    ],
)
def test_heads_that_lie(server: Server, head: str, expected: int) -> None:
    data = f"POST /v1/score HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode()
    assert status(server.send(data + request_of(GOOD))) == expected


def test_a_body_without_end_is_cut_off(server: Server) -> None:
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    began = time.monotonic()
    with server.connect() as connection:
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - began < 15:
                connection.sendall(chunk)
        assert status(read_all(connection)) in (413, 0)  # 0: the reset came before what had been answered was read
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [
        (b"", 0),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Slow: ", 0),
        (b"POST /v1/score HTTP/1.1\r\nContent-Length: 9\r\nHost: a\r\n\r\n", 408),
    ],
    ids=["nothing", "head", "body"],
)
def test_requests_that_never_arrive_are_given_up(server: Server, beginning: bytes, expected: int) -> None:
    began = time.monotonic()
    connections = [server.connect() for _ in range(20)]
    for connection in connections:
        connection.sendall(beginning)
    assert server.post(request_of(GOOD))[0] == 200
    slow = beginning.endswith(b" ")
    while slow and time.monotonic() - began < 2 * BODY_SECONDS:  # a byte now and then is not enough
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(b"a")
        time.sleep(0.1)
    for connection in connections:
        with connection:
            assert status(read_all(connection)) == expected
    assert time.monotonic() - began < BODY_SECONDS + 8


def test_answers_that_nobody_takes_are_counted_and_given_up(server: Server) -> None:
    large = request_of(
        *({**GOOD, "task": "ocr", "solution": "a", "response": "b" * 30_000} for _ in range(300))
    )  # more than a socket holds
    assert server.post(large)[0] == 200
    with contextlib.ExitStack() as held:
        for _ in range(2):
            connection = held.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(large) + large)
            time.sleep(0.3)
        assert server.post(large)[0] == 503
        for _ in range(100):
            if server.post(large)[0] == 200:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the bytes of answers that nobody takes are never free again")


def test_refusals_are_short_whatever_they_quote(server: Server) -> None:
    code, body = server.post(request_of({"k\n" * 400_000: 1}))
    assert (code, len(body) < 2000, "\n" in json.loads(body)["error"]["message"]) == (422, True, False)
    code, body = server.post(request_of({**GOOD, "params": {"k\n" * 400_000: 1}}))
    assert (code, len(body) < 2000) == (200, True)
