"""`mmr1 probe`, which health checks of containers run: ready, not ready, and whether one is told from the other."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mmr1.cli import main
from mmr1.local.readiness import ACCEPTS_WEIGHTS, SERVES

STATES = health_pb2.HealthCheckResponse


@pytest.fixture
def loading() -> Iterator[tuple[str, health.HealthServicer]]:
    """A server that accepts weights and holds none yet."""
    servicer = health.HealthServicer()
    servicer.set(ACCEPTS_WEIGHTS, STATES.SERVING)
    servicer.set(SERVES, STATES.NOT_SERVING)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None)


def test_the_two_readinesses_are_asked_for_apart(
    loading: tuple[str, health.HealthServicer], capsys: pytest.CaptureFixture[str]
) -> None:
    address, servicer = loading
    assert main(["probe", "rollout", address]) == 0
    assert main(["probe", "serving", address]) == 1
    assert capsys.readouterr() == ("ready\n", "not ready\n")
    servicer.set(SERVES, STATES.SERVING)
    assert main(["probe", "serving", address]) == 0
    servicer.set(ACCEPTS_WEIGHTS, STATES.NOT_SERVING)
    assert main(["probe", "rollout", address]) == 1


def test_metrics_are_ready_when_they_are_served() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert main(["probe", "metrics", f"127.0.0.1:{server.server_port}"]) == 0
        server.shutdown()
        port = server.server_port
    assert main(["probe", "metrics", f"127.0.0.1:{port}"]) == 1


def test_nobody_there_is_not_ready_and_a_wrong_call_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "rollout", "127.0.0.1:1"]) == 1
    assert main(["probe", "rollout", "127.0.0.1:1", "--config", "nowhere.yaml"]) == 2
    assert main(["probe", "nothing", "127.0.0.1:1"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_slow_answer_is_waited_for_as_long_as_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A busy machine takes more than a second to shake hands: its pod must not be ended for that."""

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(1.5)
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        assert main(["probe", "metrics", address]) == 0
        assert main(["probe", "metrics", address, "--timeout", "0.5"]) == 1
        server.shutdown()
    for wrong in ("0", "nan", "x"):
        assert main(["probe", "metrics", address, "--timeout", wrong]) == 2
    assert capsys.readouterr().err.count("mmr1: error: ") == 3


def test_a_server_that_never_answers_is_given_up_within_the_time(loading: tuple[str, health.HealthServicer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert main(["probe", "rollout", f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "1"]) == 1
        assert 0.9 < time.monotonic() - began < 8, "and the question what else may speak there"
