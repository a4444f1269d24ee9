"""What Redis refuses to one whose time is over: a server whose lease has run out, a learner that was superseded."""

from __future__ import annotations

import asyncio

import pytest
import redis

from mmr1.errors import StaleWriterError
from mmr1.streams import Ledger, PromptConsumer, RunQueue
from tests.conftest import make_prompt
from tests.unit.streams.test_queue import V0, check, queue, with_consumers

__all__ = ["queue"]

ADDRESS = "127.0.0.1:1"


def test_a_server_whose_lease_has_run_out_takes_nothing(queue: RunQueue, redis_url: str) -> None:
    """SEMANTICS 9: nobody has taken the lease away, and it still stands there; its deadline has passed."""
    queue.feed(make_prompt())

    async def serve(server: PromptConsumer) -> None:
        await server.register(ADDRESS, "serves", V0, 0.02)
        await asyncio.sleep(0.05)
        assert redis.Redis.from_url(redis_url).hlen("mmr1:{test}:leases") == 1
        assert await server.take(1, V0, 1) == []
        await server.register(ADDRESS, "serves", V0, 30)
        assert len(await server.take(1, V0, 1)) == 1

    with_consumers(redis_url, serve, "a")


def test_one_whose_lease_has_run_out_is_a_dead_holder(queue: RunQueue, redis_url: str) -> None:
    """SEMANTICS 5 and 9: that is how a process that was killed leaves."""
    queue.feed(make_prompt())

    async def serve(dead: PromptConsumer, alive: PromptConsumer) -> None:
        (lost,) = await dead.take(1, V0, 1)
        await dead.register(ADDRESS, "serves", V0, 0.02)
        await asyncio.sleep(0.1)
        (claimed,) = await alive.take(1, V0, 1)
        assert (claimed.entry_id, claimed.num_deliveries) == (lost.entry_id, 2)

    with_consumers(redis_url, serve, "dead", "alive", claim_idle_seconds=0.03)


def test_a_death_is_remembered_over_every_return(queue: RunQueue, redis_url: str) -> None:
    """SEMANTICS 5: giving back counts nothing, and takes nothing off: the next death is the second."""
    queue.feed(make_prompt())

    async def serve(a: PromptConsumer, b: PromptConsumer) -> None:
        await a.take(1, V0, 1)
        await a.register(ADDRESS, "serves", V0, 0)
        await asyncio.sleep(0.06)
        (held,) = await b.take(1, V0, 1)
        assert await b.give_back(held)
        (held,) = await b.take(1, V0, 1)
        await b.leave()
        await b.register(ADDRESS, "serves", V0, 30)
        (held,) = await b.take(1, V0, 1)
        assert held.num_deliveries == 2, "one has died"
        await b.register(ADDRESS, "serves", V0, 0)
        await asyncio.sleep(0.06)
        await a.register(ADDRESS, "serves", V0, 30)
        (held,) = await a.take(1, V0, 1)
        assert held.num_deliveries == 3, "two have died"

    with_consumers(redis_url, serve, "a", "b", claim_idle_seconds=0.03)


def test_a_superseded_learner_fills_no_redis_that_has_forgotten(queue: RunQueue, redis_url: str) -> None:
    """SEMANTICS 7: its checkpoint is older than the one that the newer learner goes on from."""
    redis.Redis.from_url(redis_url).flushall()
    successor = RunQueue(redis.Redis.from_url(redis_url), "test")
    assert successor.become_writer(last_incarnation=1) == 2
    with pytest.raises(StaleWriterError, match="superseded by 2"):
        queue.restore(Ledger(fed=2, trained=2, next_position=2))
    check(successor, fed=0, trained=0, next_position=0)
    assert successor.restore(Ledger(fed=4, trained=4, next_position=4))
    check(successor, fed=4, trained=4, next_position=4)
