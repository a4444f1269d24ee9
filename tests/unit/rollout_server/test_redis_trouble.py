"""A rollout server whose Redis is full, read-only, killed or frozen: it holds what it has sampled, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mmr1.records import Group
from mmr1.streams import RunQueue
from tests.own_redis import SYSTEM_REDIS, OwnRedis
from tests.relay import Relay
from tests.unit.rollout_server.test_worker import Bench, reward_server, until, working


@pytest.fixture(
    params=[None, *([SYSTEM_REDIS] if SYSTEM_REDIS else [])], ids=["own", "system"][: 1 + bool(SYSTEM_REDIS)]
)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OwnRedis]:
    server = OwnRedis(tmp_path / "redis", "always", request.param)
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


async def test_after_a_failover_it_leaves_the_old_master_although_that_goes_on_answering(
    server: OwnRedis, tmp_path: Path
) -> None:
    """The old master is a replica now and keeps its connections; the name leads to the new one."""
    new = OwnRedis(tmp_path / "new", "always", server.program)
    try:
        with Relay(server.port) as name:
            bench = Bench(name.url, tmp_path, reward_server())
            bench.feed(0, 1)
            await bench.serve()
            bench.sampler.release.clear()
            async with working(bench):
                await until(lambda: len(bench.sampler.running) == 2)
                new.follow(server)
                new.client().execute_command("REPLICAOF", "NO", "ONE")
                name.lead_to(new.port, cut=False)
                server.client().execute_command("REPLICAOF", "127.0.0.1", str(new.port))
                bench.sampler.release.set()
                there = RunQueue(new.client(), "test")
                await until(lambda: there.ledger().num_groups == 2, seconds=30)
                await until(lambda: [member.server_id for member in there.members()] == ["rollout-0"], seconds=30)
            assert bench.sampler.num_started == 2, "nothing was sampled twice"
            assert there.ledger().balanced
            await bench.redis.aclose()
    finally:
        new.kill()
