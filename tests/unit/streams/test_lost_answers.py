"""A server's request reached Redis and its answer never came back: nobody has died, so nothing counts as a death."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mmr1.records import PolicyVersion
from mmr1.streams import Delivery, PromptConsumer, RunQueue
from tests.conftest import make_group, make_prompt
from tests.relay import Relay

V0 = PolicyVersion(1, 0)


@pytest.fixture
def queue(redis_url: str) -> RunQueue:
    queue = RunQueue(redis.Redis.from_url(redis_url), "test")
    queue.become_writer()
    for position in range(3):
        queue.feed(make_prompt(position))
    return queue


@pytest.fixture
def relay(redis_url: str) -> Iterator[Relay]:
    with Relay(int(redis_url.split(":")[2].split("/")[0])) as relay:
        yield relay


async def consumer_of(url: str, name: str, tries: int = 0, idle: float = 60.0) -> PromptConsumer:
    client = redis.asyncio.Redis.from_url(url, retry=Retry(NoBackoff(), tries))
    consumer = PromptConsumer(client, "test", name, claim_idle_seconds=idle, max_deliveries=2)
    await consumer.prepare()
    await consumer.register("127.0.0.1:1", "serves", V0, 30)
    return consumer


@pytest.mark.parametrize("tries", [0, 1])
async def test_what_a_lost_answer_held_comes_with_the_next_one_and_counts_nothing(
    queue: RunQueue, relay: Relay, tries: int
) -> None:
    """SEMANTICS 5, whether the client repeats its command by itself or not."""
    server = await consumer_of(relay.url, "a", tries)
    (first,) = await server.take(1, V0, 1)
    relay.lose_an_answer()
    if not tries:
        with pytest.raises(redis.RedisError):
            await server.take(2, V0, 1, [first.entry_id])
    held = await server.take(2, V0, 1, [first.entry_id])
    assert relay.num_lost == 1
    assert [one.prompt.id.position for one in held] == [1, 2]
    assert [one.num_deliveries for one in held] == [1, 1]
    assert await server.take(2, V0, 1, [one.entry_id for one in (first, *held)]) == [], "once"
    for one in (first, *held):
        assert await server.publish(one, make_group(one.prompt))
    assert queue.ledger().balanced and queue.ledger().num_groups == 3


async def test_what_another_server_has_claimed_meanwhile_stays_with_it(queue: RunQueue, relay: Relay) -> None:
    server = await consumer_of(relay.url, "a", idle=0.05)
    relay.lose_an_answer()
    with pytest.raises(redis.RedisError):
        await server.take(2, V0, 1)
    other = await consumer_of(relay.url, "b", idle=0.05)
    await asyncio.sleep(0.1)
    claimed = await other.take(1, V0, 1)
    assert [(one.prompt.id.position, one.num_deliveries) for one in claimed] == [(0, 1)]
    assert [one.prompt.id.position for one in await server.take(1, V0, 1)] == [1]


@pytest.mark.parametrize("then", ["leaves", "takes nothing more"])
async def test_it_counts_nothing_either_when_the_server_does_not_ask_again(
    queue: RunQueue, relay: Relay, then: str
) -> None:
    server = await consumer_of(relay.url, "a", idle=0.05)
    relay.lose_an_answer()
    with pytest.raises(redis.RedisError):
        await server.take(3, V0, 1)
    other = await consumer_of(relay.url, "b", idle=0.05)
    if then == "leaves":
        await server.leave()
    else:
        await asyncio.sleep(0.1)
    assert [one.num_deliveries for one in await other.take(3, V0, 1)] == [1, 1, 1]


@pytest.mark.parametrize("verb", ["publish", "give_back", "dead"])
async def test_a_lost_answer_to_an_ending_is_found_settled(queue: RunQueue, relay: Relay, verb: str) -> None:
    """The caller insists; by the second time it holds the prompt no more, and the accounts have moved once."""
    server = await consumer_of(relay.url, "a")
    (held,) = await server.take(1, V0, 1)

    async def end(delivery: Delivery = held) -> bool:
        if verb == "publish":
            return await server.publish(delivery, make_group(held.prompt))
        return await (server.give_back(delivery) if verb == "give_back" else server.dead(delivery, "prompt_refused"))

    assert not await end(replace(held, entry_id="1-1")), "and Redis knows the script from now on"
    relay.lose_an_answer()
    with pytest.raises(redis.RedisError):
        await end()
    assert not await end()
    ledger = queue.ledger()
    assert ledger.balanced and ledger.fed == 3
    assert (ledger.num_groups, ledger.num_prompts, sum(ledger.dead.values())) == {
        "publish": (1, 2, 0),
        "give_back": (0, 3, 0),
        "dead": (0, 2, 1),
    }[verb]
