"""A learner and a rollout server of different releases, over real gRPC: refused before any verb."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from mmr1 import rollout_client
from mmr1.images import ImageStore
from mmr1.rollout_client import RolloutClient
from mmr1.wire import SchemaVersionError
from mmr1.wire.v1.rollout_pb2_grpc import add_RolloutServiceServicer_to_server
from mmr1_rollout_server import servicer as servicer_module
from mmr1_rollout_server.metrics import Metrics
from mmr1_rollout_server.servicer import RolloutServicer
from mmr1_rollout_server.weights import Policy
from tests.models import small_config


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RolloutClient]:
    policy = Policy("run", on_change=lambda: None, on_stuck=lambda _: None)
    server = grpc.aio.server()
    servicer = RolloutServicer(policy, ImageStore(tmp_path), Metrics(), small_config(tmp_path), "rollout-0")
    add_RolloutServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = RolloutClient(f"127.0.0.1:{port}", "run", 1)
    yield client
    client.close()
    await server.stop(None)


async def test_the_same_release_is_answered(client: RolloutClient) -> None:
    assert (await asyncio.to_thread(client.status)).state == "starting"


async def test_a_newer_learner_is_refused_by_the_server(client: RolloutClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_client, "SCHEMA_VERSION", 3)
    words = rf"rollout server at {client.address}: GetStatus has schema version 3, this build speaks 1 to 1; run"
    with pytest.raises(SchemaVersionError, match=words):
        await asyncio.to_thread(client.status)


async def test_a_newer_server_is_refused_by_the_learner(client: RolloutClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer_module, "SCHEMA_VERSION", 3)
    words = rf"rollout server at {client.address} has schema version 3, this build speaks 1 to 1; run"
    with pytest.raises(SchemaVersionError, match=words):
        await asyncio.to_thread(client.status)


async def test_a_server_that_is_gone_is_no_other_release(tmp_path: Path) -> None:
    client = RolloutClient("127.0.0.1:1", "run", 1)
    with pytest.raises(grpc.RpcError):
        await asyncio.to_thread(client.status, 0.5)
    client.close()
