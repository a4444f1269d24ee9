"""The queue on a real Redis: every transition, the fences, and the equation that must always hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis
import redis.asyncio

from mmr1.errors import StaleWriterError
from mmr1.records import PolicyVersion
from mmr1.streams import Ledger, PromptConsumer, RunQueue, read_ledger
from tests.conftest import make_group, make_prompt

V0 = PolicyVersion(1, 0)


@pytest.fixture
def queue(redis_url: str) -> RunQueue:
    queue = RunQueue(redis.Redis.from_url(redis_url), "test")
    assert queue.become_writer() == 1
    return queue


def with_consumers(
    redis_url: str,
    body: Callable[..., Awaitable[None]],
    *names: str,
    claim_idle_seconds: float = 60,
    max_deliveries: int = 3,
) -> None:
    async def run() -> None:
        client = redis.asyncio.Redis.from_url(redis_url)
        consumers = [
            PromptConsumer(client, "test", name, claim_idle_seconds=claim_idle_seconds, max_deliveries=max_deliveries)
            for name in names
        ]
        for consumer in consumers:
            await consumer.prepare()
            await consumer.register("127.0.0.1:1", "serves", V0, 30)
        await body(*consumers)
        await client.aclose()

    asyncio.run(run())


def check(queue: RunQueue, **expected: object) -> Ledger:
    ledger = queue.ledger()
    assert ledger.balanced, ledger
    for name, value in expected.items():
        assert getattr(ledger, name) == value, (name, ledger)
    return ledger


def test_a_group_goes_round_and_the_ledger_balances_at_every_station(queue: RunQueue, redis_url: str) -> None:
    prompt = make_prompt()
    assert queue.feed(prompt)
    check(queue, fed=1, num_prompts=1, unapplied=1)
    assert not queue.feed(prompt), "feeding the same id twice is a no-op"

    async def serve(consumer: PromptConsumer) -> None:
        (delivery,) = await consumer.take(4, V0, 1)
        assert delivery.prompt == prompt and delivery.num_deliveries == 1
        check(queue, num_prompts=1)
        assert await consumer.publish(delivery, make_group(prompt))
        assert not await consumer.publish(delivery, make_group(prompt)), "published once"

    with_consumers(redis_url, serve, "a")
    check(queue, fed=1, num_prompts=0, num_groups=1)
    (group,) = queue.read(8)
    assert group == make_group(prompt)
    queue.mark_applied([prompt.id])
    check(queue, pending=1, unapplied=0, trained=0)
    assert queue.acknowledge([prompt.id]) == 1
    assert queue.acknowledge([prompt.id]) == 0
    check(queue, pending=0, trained=1)
    assert not queue.feed(prompt), "a trained place is not fed again"


def test_a_server_without_a_lease_or_left_behind_takes_nothing(queue: RunQueue, redis_url: str) -> None:
    queue.feed(make_prompt())

    async def serve(consumer: PromptConsumer) -> None:
        await consumer.register("x", "serves", V0, 0)
        assert await consumer.take(1, V0, 1) == []
        await consumer.register("x", "serves", V0, 30)
        queue.commit_version(PolicyVersion(1, 2))
        assert await consumer.take(1, V0, 1) == [], "two versions behind with a bound of one"
        assert len(await consumer.take(1, PolicyVersion(1, 1), 1)) == 1
        assert await consumer.take(1, PolicyVersion(9, 2), 1) == [], "another incarnation's version"

    with_consumers(redis_url, serve, "a")


def test_dropping_feeds_the_next_attempt_in_one_step(queue: RunQueue, redis_url: str) -> None:
    first = make_prompt()
    queue.feed(first)
    assert queue.drop(first.id, "stale", make_prompt(attempt=1))
    check(queue, fed=2, dropped={"stale": 1}, pending=1)
    assert not queue.drop(first.id, "stale", make_prompt(attempt=1))
    check(queue, fed=2, dropped={"stale": 1}, pending=1)
    assert {id_.attempt for id_ in queue.pending_ids()} == {1}


def test_an_unreadable_prompt_is_dead_with_its_reason(queue: RunQueue, redis_url: str) -> None:
    queue.feed(make_prompt())

    async def serve(consumer: PromptConsumer) -> None:
        (held,) = await consumer.take(1, V0, 1)
        assert await consumer.dead(held, "image", "a/b.png: truncated")

    with_consumers(redis_url, serve, "a")
    check(queue, dead={"image": 1}, pending=0)


def test_a_superseded_learner_writes_nothing_and_the_new_one_gets_its_groups(queue: RunQueue, redis_url: str) -> None:
    prompts = [make_prompt(i) for i in range(3)]
    for prompt in prompts:
        queue.feed(prompt)

    async def serve(consumer: PromptConsumer) -> None:
        for held in await consumer.take(3, V0, 1):
            await consumer.publish(held, make_group(held.prompt))

    with_consumers(redis_url, serve, "a")
    assert len(queue.read(2)) == 2
    queue.mark_applied([prompts[0].id])

    successor = RunQueue(redis.Redis.from_url(redis_url), "test")
    assert successor.become_writer() == 2
    for write in (
        lambda: queue.feed(make_prompt(9)),
        lambda: queue.read(1),
        lambda: queue.acknowledge([prompts[0].id]),
        lambda: queue.mark_applied([prompts[0].id]),
        lambda: queue.drop(prompts[0].id, "stale"),
        lambda: queue.commit_version(PolicyVersion(1, 1)),
    ):
        with pytest.raises(StaleWriterError, match="superseded by 2"):
            write()
    check(successor, pending=3, num_applied=0, fed=3)
    assert {group.prompt.id.position for group in successor.read(8)} == {0, 1, 2}
    assert successor.acknowledge([prompt.id for prompt in prompts]) == 3
    check(successor, pending=0, trained=3)


def test_members_are_the_holders_of_valid_leases(queue: RunQueue, redis_url: str) -> None:
    async def serve(a: PromptConsumer, b: PromptConsumer) -> None:
        await a.register("host:1", "accepts_weights", None, 30)
        await b.register("host:2", "serves", PolicyVersion(1, 4), 0.01)
        await asyncio.sleep(0.03)

    with_consumers(redis_url, serve, "a", "b")
    (member,) = queue.members()
    assert (member.server_id, member.address, member.state, member.version) == ("a", "host:1", "accepts_weights", None)


def test_an_emptied_redis_gets_its_accounts_back(queue: RunQueue, redis_url: str) -> None:
    before = Ledger(fed=5, trained=4, dropped={"stale": 1}, next_position=5)
    assert queue.restore(before)
    assert not queue.restore(before), "only into a Redis that has forgotten"
    check(queue, fed=5, trained=4, next_position=5)
    assert not queue.feed(make_prompt(3)), "its place has passed"
    assert queue.feed(make_prompt(3), force=True)
    assert queue.feed(make_prompt(5))
    check(queue, fed=7, pending=2)


def test_the_ledger_notices_a_lost_entry(queue: RunQueue, redis_url: str) -> None:
    """The equation is a real check: an entry removed behind the scripts' back breaks it."""
    queue.feed(make_prompt())
    client = redis.Redis.from_url(redis_url)
    (entry,) = client.xrange("mmr1:{test}:prompts")
    client.xdel("mmr1:{test}:prompts", entry[0])
    assert not read_ledger(client, "test").balanced


def test_nothing_that_is_settled_is_fed_again_however_it_is_asked_for(queue: RunQueue, redis_url: str) -> None:
    """SEMANTICS 2: trained, dropped or dead, before and after pruning, which what waits holds up."""
    for position in range(4):
        queue.feed(make_prompt(position))

    async def serve(consumer: PromptConsumer) -> None:
        first, second, third = await consumer.take(3, V0, 1)
        assert await consumer.publish(first, make_group(first.prompt))
        assert await consumer.publish(second, make_group(second.prompt))
        assert await consumer.dead(third, "image")

    with_consumers(redis_url, serve, "a")
    trained, dropped = (group.prompt for group in queue.read(2))
    client = redis.Redis.from_url(redis_url)
    over = [dropped, make_prompt(2)]

    def nothing_comes_back() -> None:
        assert not any(queue.feed(prompt, force=True) for prompt in over) and queue.feed_again(over) == 0
        assert queue.ledger().fed == 4

    queue.drop(dropped.id, "stale")
    nothing_comes_back()
    queue.prune()
    assert client.zcard("mmr1:{test}:settled") == len(over), "place 0 is pending: they stand behind it"
    nothing_comes_back()
    queue.acknowledge([trained.id])
    over.append(trained)
    nothing_comes_back()
    queue.prune()
    assert not client.exists("mmr1:{test}:settled"), "place 3 is the oldest now"
    nothing_comes_back()
    check(queue, fed=4, trained=1, dropped={"stale": 1}, dead={"image": 1}, pending=1)


def test_servers_share_what_is_new_and_leave_nothing_lying(queue: RunQueue, redis_url: str) -> None:
    """The first to ask has room for all; were it to take all, the others would have nothing to do in this step."""
    for position in range(9):
        queue.feed(make_prompt(position))

    async def serve(a: PromptConsumer, b: PromptConsumer) -> None:
        held = await a.take(64, V0, 1)
        assert len(held) == 5, "half of nine"
        assert await a.take(64, V0, 1, [one.entry_id for one in held]) == [], "nor in a second call"
        for delivery in held:
            await a.publish(delivery, make_group(delivery.prompt))
        rest = await a.take(64, V0, 1)
        assert len(rest) == 2, "b has not asked: half of the four that are left"
        assert len(await b.take(64, V0, 1)) == 2

    with_consumers(redis_url, serve, "a", "b")
    check(queue, num_groups=5, num_prompts=4)


@pytest.mark.parametrize("state", ["starting", "accepts_weights", "broken", "draining"])
def test_a_server_that_does_not_sample_has_no_share(queue: RunQueue, redis_url: str, state: str) -> None:
    for position in range(6):
        queue.feed(make_prompt(position))

    async def serve(a: PromptConsumer, b: PromptConsumer) -> None:
        await b.register("127.0.0.1:1", state, V0, 30)
        assert len(await a.take(64, V0, 1)) == 6

    with_consumers(redis_url, serve, "a", "b")
