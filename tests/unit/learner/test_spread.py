"""One of several rollout servers dies while held-out prompts are asked: its prompts go to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from mmr1.rollout_client import RolloutClient
from mmr1.wire.convert import group_to_message
from mmr1.wire.v1 import rollout_pb2 as pb
from mmr1.wire.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from mmr1_learner.spread import generate_everywhere
from tests.conftest import free_port, make_group, make_prompt

PROMPTS = [make_prompt(position) for position in range(6)]


class Server(RolloutServiceServicer):
    """Answers at once, or holds its first call until it is stopped."""

    def __init__(self, holds: bool = False, refuses: grpc.StatusCode | None = None) -> None:
        self.num_asked = 0
        self.asked, self._holds, self._refuses = threading.Event(), holds, refuses
        self._grpc = grpc.server(ThreadPoolExecutor(8))
        add_RolloutServiceServicer_to_server(self, self._grpc)
        self.client = RolloutClient(f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}", "test", 1)
        self._grpc.start()
        self._stopped = threading.Event()

    def Generate(self, request: Any, context: Any) -> pb.GenerateResponse:
        self.num_asked += 1
        self.asked.set()
        if self._holds:
            self._stopped.wait(30)
            context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
        if self._refuses is not None:
            context.abort(self._refuses, "not this one")
        group = make_group(make_prompt(request.prompt.id.position))
        return pb.GenerateResponse(group=group_to_message(group))

    def stop(self) -> None:
        self._grpc.stop(0)
        self._stopped.set()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def started(**options: Any) -> Server:
        servers.append(Server(**options))
        return servers[-1]

    yield started
    for server in servers:
        server.client.close()
        server.stop()


def test_what_a_server_had_when_it_died_is_asked_of_the_others(start: Callable[..., Server]) -> None:
    alive, dying = start(), start(holds=True)
    killing = threading.Thread(target=lambda: dying.asked.wait(30) and dying.stop())
    killing.start()
    groups = generate_everywhere([dying.client, alive.client], PROMPTS, lambda: None)
    killing.join()
    assert [group.prompt.id.position for group in groups] == [0, 1, 2, 3, 4, 5]
    assert 0 < dying.num_asked <= 3 and alive.num_asked == 6


def test_without_any_server_the_failure_is_told(start: Callable[..., Server]) -> None:
    nobody = RolloutClient(f"127.0.0.1:{free_port()}", "test", 1)
    broken = start(refuses=grpc.StatusCode.INTERNAL)
    with pytest.raises(grpc.RpcError):
        generate_everywhere([nobody, broken.client], PROMPTS, lambda: None)
    nobody.close()


def test_a_prompt_that_is_refused_is_no_servers_failure(start: Callable[..., Server]) -> None:
    refusing, other = start(refuses=grpc.StatusCode.INVALID_ARGUMENT), start()
    with pytest.raises(grpc.RpcError, match="not this one"):
        generate_everywhere([refusing.client, other.client], PROMPTS, lambda: None)
    assert other.num_asked <= 3, "nobody else is asked for what no server would take"
