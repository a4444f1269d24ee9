"""What counts as a holder's death, and what becomes of what it held: on a real Redis (SEMANTICS 5)."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from mmr1.streams import PromptConsumer, RunQueue
from mmr1.streams.accounts import read_dead
from tests.conftest import make_group, make_prompt
from tests.unit.streams.test_queue import V0, check, with_consumers


@pytest.fixture
def queue(redis_url: str) -> RunQueue:
    queue = RunQueue(redis.Redis.from_url(redis_url), "test")
    assert queue.become_writer() == 1
    return queue


async def dies(consumer: PromptConsumer) -> None:
    """Its lease runs out, as that of a process that was killed does."""
    await consumer.register("127.0.0.1:1", "serves", V0, 0)


async def loads(consumer: PromptConsumer) -> None:
    """It holds a lease and will sample nothing soon: others leave it no share of what is new."""
    await consumer.register("127.0.0.1:1", "accepts_weights", V0, 30)


def test_a_dead_holders_prompt_moves_and_the_old_holder_is_fenced(queue: RunQueue, redis_url: str) -> None:
    """SEMANTICS 5: holders refresh their claims, so slow generation counts nothing; a holder's death counts."""
    queue.feed(make_prompt())

    async def serve(dead: PromptConsumer, alive: PromptConsumer) -> None:
        (lost,) = await dead.take(1, V0, 1)
        assert await alive.take(1, V0, 1) == [], "not idle yet"
        await asyncio.sleep(0.6)
        assert await dead.heartbeat([lost]) == {lost.entry_id}
        assert await alive.take(1, V0, 1) == [], "a heartbeat keeps it"
        await dies(dead)
        assert await alive.take(1, V0, 1) == [], "it may still come back"
        await asyncio.sleep(1.1)
        (claimed,) = await alive.take(1, V0, 1)
        assert claimed.num_deliveries == 2
        assert not await dead.publish(lost, make_group(lost.prompt))
        assert not await dead.give_back(lost)
        assert await dead.heartbeat([lost]) == set()
        assert await alive.publish(claimed, make_group(claimed.prompt))

    with_consumers(redis_url, serve, "dead", "alive", claim_idle_seconds=1.0)
    check(queue, num_groups=1, num_prompts=0)


def test_what_a_living_server_has_lost_sight_of_goes_to_another_and_counts_nothing(
    queue: RunQueue, redis_url: str
) -> None:
    """SEMANTICS 5: a delivery counts a holder's death. This one is slow, or does not know what it holds, and lives."""
    for position in range(2):
        queue.feed(make_prompt(position))

    async def serve(slow: PromptConsumer, other: PromptConsumer) -> None:
        await loads(other)
        held = await slow.take(2, V0, 1)
        await asyncio.sleep(0.05)
        assert await slow.take(8, V0, 1, [one.entry_id for one in held]) == [], "it works on them"
        claimed = await other.take(1, V0, 1)
        assert [(one.entry_id, one.num_deliveries) for one in claimed] == [(held[0].entry_id, 1)]
        again = await slow.take(8, V0, 1)
        assert [(one.entry_id, one.num_deliveries) for one in again] == [(held[1].entry_id, 1)]

    with_consumers(redis_url, serve, "a", "b", claim_idle_seconds=0.03)


def test_a_process_that_is_started_anew_finds_what_its_dead_predecessor_held(queue: RunQueue, redis_url: str) -> None:
    queue.feed(make_prompt())

    async def serve(first: PromptConsumer, second: PromptConsumer) -> None:  # both are called a
        assert await first.take(1, V0, 1) == [], "the lease is the later process's"
        await first.leave()
        await dies(first)
        assert [member.server_id for member in queue.members()] == ["a"], "and only the later one ends it"
        await first.register("127.0.0.1:1", "serves", V0, 30)
        (held,) = await first.take(1, V0, 1)
        await second.register("127.0.0.1:1", "serves", V0, 30)
        await asyncio.sleep(0.04)
        (found,) = await second.take(1, V0, 1)
        assert (found.entry_id, found.num_deliveries) == (held.entry_id, 2)
        assert not await first.publish(held, make_group(held.prompt))

    with_consumers(redis_url, serve, "a", "a", claim_idle_seconds=0.03)


def test_one_that_may_kill_its_holder_is_handed_out_by_itself(queue: RunQueue, redis_url: str) -> None:
    """SEMANTICS 5: a prompt redelivered after a crash runs alone; what waits is not held, so not suspected."""
    for position in range(4):
        queue.feed(make_prompt(position))

    async def serve(dead: PromptConsumer, busy: PromptConsumer) -> None:
        (works,) = await busy.take(1, V0, 1)
        suspects = await dead.take(2, V0, 1)
        await dies(dead)
        await asyncio.sleep(0.04)
        await busy.heartbeat([works])
        assert await busy.take(8, V0, 1, [works.entry_id]) == [], "nothing new before a server is free for them"
        assert await busy.publish(works, make_group(works.prompt))
        for suspect in suspects:
            (alone,) = await busy.take(8, V0, 1)
            assert (alone.entry_id, alone.num_deliveries) == (suspect.entry_id, 2)
            assert await busy.publish(alone, make_group(alone.prompt))
        (last,) = await busy.take(8, V0, 1)
        assert (last.prompt.id.position, last.num_deliveries) == (3, 1)

    with_consumers(redis_url, serve, "a", "b", claim_idle_seconds=0.03)


def test_when_nobody_could_reach_redis_each_holder_has_time_to_say_that_it_lives(
    queue: RunQueue, redis_url: str
) -> None:
    """SEMANTICS 5: Redis was away for longer than claims last; all leases have run out, and nobody has died."""
    queue.feed(make_prompt())
    client = redis.Redis.from_url(redis_url)

    async def serve(holder: PromptConsumer, first: PromptConsumer) -> None:
        (held,) = await holder.take(1, V0, 1)
        await asyncio.sleep(0.5)
        client.hset("mmr1:{test}:pulse", "renewed", time.time() - 60)  # the last that Redis heard of anybody
        await dies(holder)
        await first.register("127.0.0.1:1", "serves", V0, 30)
        assert await first.take(1, V0, 1) == []
        await holder.register("127.0.0.1:1", "serves", V0, 30)
        assert await holder.heartbeat([held]) == {held.entry_id}
        await dies(holder)
        await asyncio.sleep(0.5)
        (claimed,) = await first.take(1, V0, 1)
        assert claimed.num_deliveries == 2, "silence after that is a death"

    with_consumers(redis_url, serve, "a", "b", claim_idle_seconds=0.4)


def test_a_prompt_whose_holders_keep_dying_is_dead_and_giving_back_counts_nothing(
    queue: RunQueue, redis_url: str
) -> None:
    """SEMANTICS 5: giving back counts nothing; after max_deliveries deaths the prompt is dead."""
    queue.feed(make_prompt())

    async def serve(a: PromptConsumer, b: PromptConsumer) -> None:
        (held,) = await a.take(1, V0, 1)
        for _ in range(5):
            assert await a.give_back(held)
            (held,) = await a.take(1, V0, 1)
            assert held.num_deliveries == 1
        await dies(a)
        await asyncio.sleep(0.04)
        for _ in range(3):
            (held,) = await b.take(1, V0, 1)
            assert held.num_deliveries == 2
            assert await b.give_back(held), "and forgets no death"
        (held,) = await b.take(1, V0, 1)
        await dies(b)
        await asyncio.sleep(0.04)
        await a.register("127.0.0.1:1", "serves", V0, 30)
        assert await a.take(1, V0, 1) == []

    with_consumers(redis_url, serve, "a", "b", claim_idle_seconds=0.03, max_deliveries=2)
    check(queue, dead={"max_deliveries": 1}, pending=0)


def test_a_prompt_whose_sampling_fails_again_and_again_is_dead_with_what_was_said(
    queue: RunQueue, redis_url: str
) -> None:
    queue.feed(make_prompt())

    async def serve(a: PromptConsumer, b: PromptConsumer) -> None:
        for server, number in ((a, 1), (b, 2)):
            (held,) = await server.take(1, V0, 1)
            assert held.num_deliveries == number
            assert await server.fail(held, f"failure {number}")
            assert not await server.fail(held, "it is not mine any more")
        assert await a.take(1, V0, 1) == []

    with_consumers(redis_url, serve, "a", "b", max_deliveries=2)
    check(queue, dead={"max_deliveries": 1}, pending=0)
    [dead] = read_dead(redis.Redis.from_url(redis_url), "test")
    assert dead.detail == "its holder died or failed 2 times: failure 2"


def test_a_buried_prompt_tells_who_held_it_last_and_what_that_one_said(queue: RunQueue, redis_url: str) -> None:
    """SEMANTICS 5: it is dead with the last error."""
    queue.feed(make_prompt(0))
    queue.feed(make_prompt(1))

    async def serve(a: PromptConsumer, b: PromptConsumer) -> None:
        await loads(b)
        spoke, _ = await a.take(2, V0, 1)
        assert await a.note_error(spoke, "CUDA error: out of memory")
        assert not await b.note_error(spoke, "it is not mine")
        await dies(a)
        await asyncio.sleep(0.04)
        assert await b.take(2, V0, 1) == []

    with_consumers(redis_url, serve, "a", "b", claim_idle_seconds=0.03, max_deliveries=1)
    client = redis.Redis.from_url(redis_url)
    assert [dead.detail for dead in read_dead(client, "test")] == [
        "its holder died or failed 1 times, the last was a: CUDA error: out of memory",
        "its holder died or failed 1 times, the last was a: it left no word",
    ]
    assert not client.exists("mmr1:{test}:errors"), "nothing stays of what is over"


def test_who_leaves_gives_everything_back_and_is_gone(queue: RunQueue, redis_url: str) -> None:
    for position in range(2):
        queue.feed(make_prompt(position))

    async def serve(a: PromptConsumer, b: PromptConsumer) -> None:
        await loads(b)
        assert len(await a.take(2, V0, 1)) == 2
        await a.leave()
        assert [member.server_id for member in queue.members()] == ["b"]
        assert [one.num_deliveries for one in await b.take(8, V0, 1)] == [1, 1]

    with_consumers(redis_url, serve, "a", "b")
    names = {row["name"] for row in redis.Redis.from_url(redis_url).xinfo_consumers("mmr1:{test}:prompts", "rollout")}
    assert not any(name.startswith(b"a/") for name in names)
