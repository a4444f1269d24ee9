"""A rollout server whose Redis is full, read-only, killed or frozen: it holds what it has sampled, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mmr1.records import Group
from tests.own_redis import OwnRedis
from tests.unit.rollout_server.test_worker import Bench, reward_server, until, working


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    server = OwnRedis(tmp_path / "redis", "always")
    yield server
    server.kill()


@pytest.fixture
async def bench(server: OwnRedis, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(server.url, tmp_path, reward_server())
    yield bench
    await bench.redis.aclose()


@pytest.mark.parametrize("what", ["full", "read-only", "away"])
async def test_what_was_sampled_meanwhile_is_published_when_it_clears(
    bench: Bench, server: OwnRedis, what: str
) -> None:
    client = server.client()
    begin: dict[str, Callable[[], object]] = {
        "full": lambda: client.config_set("maxmemory", 1),
        "read-only": lambda: client.execute_command("REPLICAOF", "127.0.0.1", "1"),
        "away": server.kill,
    }
    clear: dict[str, Callable[[], object]] = {
        "full": lambda: client.config_set("maxmemory", 0),
        "read-only": lambda: client.execute_command("REPLICAOF", "NO", "ONE"),
        "away": server.start,
    }

    def waits() -> bool:
        return bool(bench.metrics.registry.get_sample_value("mmr1_rollout_redis_waits"))

    bench.sampler.release.clear()
    bench.feed(0, 1)
    await bench.serve()
    async with working(bench):
        await until(lambda: len(bench.sampler.running) == 2)
        assert not waits()
        begin[what]()
        bench.sampler.release.set()
        await until(waits, seconds=15)
        await until(lambda: not bench.sampler.running)
        await asyncio.sleep(0.5)
        if what != "away":
            assert bench.queue.ledger().num_groups == 0, "a refused script has changed nothing"
            assert bench.queue.ledger().balanced
        clear[what]()
        groups: list[Group] = []
        await until(lambda: groups.extend(bench.queue.read(10)) or len(groups) == 2, seconds=30)
        await until(lambda: not waits(), seconds=15)
    assert {group.prompt.id.position for group in groups} == {0, 1}
    assert bench.sampler.num_started == 2, "nothing was sampled twice"
    assert bench.queue.ledger().balanced
