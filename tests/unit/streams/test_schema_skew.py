"""Two releases on one queue: one schema version older is understood, anything else is refused and loses nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from mmr1.records import Group, Prompt
from mmr1.streams import PromptConsumer, RunQueue
from mmr1.streams import groups as groups_module
from mmr1.streams import prompts as prompts_module
from mmr1.wire import SchemaVersionError, convert, decode_group, decode_prompt, encode_group, encode_prompt, schema
from tests.conftest import make_group, make_prompt
from tests.unit.streams.test_queue import V0, check, with_consumers


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From here on this process is a build of that schema version."""

    def become(version: int) -> None:
        for module in (schema, convert, groups_module, prompts_module):
            monkeypatch.setattr(module, "SCHEMA_VERSION", version)
        monkeypatch.setattr(schema, "OLDEST_SCHEMA_VERSION", max(1, version - 1))

    return become


@pytest.fixture
def queue(redis_url: str) -> RunQueue:
    return RunQueue(redis.Redis.from_url(redis_url), "test")


def test_one_version_older_is_understood_and_nothing_else(build: Callable[[int], None]) -> None:
    build(3)
    prompt, group = encode_prompt(make_prompt()), encode_group(make_group(make_prompt()))
    for reader in (3, 4):
        build(reader)
        assert isinstance(decode_prompt(prompt), Prompt) and isinstance(decode_group(group), Group)
    for reader, spoken in {2: "1 to 2", 5: "4 to 5"}.items():
        build(reader)
        for decode, data, what in ((decode_prompt, prompt, "prompt"), (decode_group, group, "group")):
            words = f"{what} has schema version 3, this build speaks {spoken}; run the same release"
            with pytest.raises(SchemaVersionError, match=words):
                decode(data)


def test_what_an_older_release_left_in_the_queue_is_taken_and_trained_by_the_next(
    queue: RunQueue, redis_url: str, build: Callable[[int], None]
) -> None:
    build(1)
    queue.become_writer()
    for position in range(2):
        queue.feed(make_prompt(position))

    async def publish(consumer: PromptConsumer) -> None:
        (held,) = await consumer.take(1, V0, 1)
        await consumer.publish(held, make_group(held.prompt))

    with_consumers(redis_url, publish, "a")
    build(2)
    assert queue.become_writer() == 2

    async def take(consumer: PromptConsumer) -> None:
        version = V0._replace(incarnation=2)
        await consumer.register("x", "serves", version, 30)
        (held,) = await consumer.take(1, version, 1)
        assert held.prompt.id.position == 1

    with_consumers(redis_url, take, "b")
    assert [group.prompt.id.position for group in queue.read(2)] == [0]


def test_a_refused_prompt_and_those_taken_with_it_are_given_back_uncounted(
    queue: RunQueue, redis_url: str, build: Callable[[int], None]
) -> None:
    """The reader stops. Nobody has died, so nobody's deliveries are counted, and a fitting server finds all of them."""
    queue.become_writer()
    build(1)
    queue.feed(make_prompt(0))
    build(2)
    queue.feed(make_prompt(1))
    build(1)

    async def refuse(consumer: PromptConsumer) -> None:
        with pytest.raises(SchemaVersionError, match="prompt has schema version 2, this build speaks 1 to 1"):
            await consumer.take(2, V0, 1)

    with_consumers(redis_url, refuse, "old")
    check(queue, num_prompts=2, pending=2)
    held = redis.Redis.from_url(redis_url).xpending("mmr1:{test}:prompts", "rollout")
    assert [row["name"] for row in held["consumers"]] == [b"nobody"]
    build(2)

    async def take(consumer: PromptConsumer) -> None:
        queue.become_writer()
        version = V0._replace(incarnation=2)
        await consumer.register("x", "serves", version, 30)
        assert [delivery.num_deliveries for delivery in await consumer.take(2, version, 1)] == [1, 1]

    with_consumers(redis_url, take, "new")


@pytest.mark.parametrize(("server", "refused"), [(1, True), (2, False), (3, False), (4, True)])
def test_a_server_whose_groups_the_learner_would_refuse_takes_nothing(
    queue: RunQueue, redis_url: str, build: Callable[[int], None], server: int, refused: bool
) -> None:
    build(2)
    queue.become_writer()
    queue.feed(make_prompt())  # of a version that all but server 4 understand
    build(3)
    queue.become_writer()
    build(server)

    async def take(consumer: PromptConsumer) -> None:
        version = V0._replace(incarnation=2)
        await consumer.register("x", "serves", version, 30)
        if refused:
            words = f"the learner of this run has schema version 3, this build speaks .* to {server}; run the same"
            with pytest.raises(SchemaVersionError, match=words):
                await consumer.take(1, version, 1)
        else:
            assert len(await consumer.take(1, version, 1)) == 1

    with_consumers(redis_url, take, "a")
    check(queue, num_prompts=1, pending=1)


def test_a_refused_group_stops_the_learner_and_waits_for_one_that_understands_it(
    queue: RunQueue, redis_url: str, build: Callable[[int], None]
) -> None:
    queue.become_writer()
    for position in range(3):
        queue.feed(make_prompt(position))

    async def publish(consumer: PromptConsumer) -> None:
        for version, held in zip((1, 2, 1), await consumer.take(3, V0, 1), strict=True):
            build(version)
            await consumer.publish(held, make_group(held.prompt))

    with_consumers(redis_url, publish, "a")
    build(1)
    with pytest.raises(SchemaVersionError, match="group has schema version 2, this build speaks 1 to 1"):
        queue.read(3)
    check(queue, num_groups=3, pending=3)
    build(2)
    queue.become_writer()
    assert [group.prompt.id.position for group in queue.read(3)] == [0, 1, 2]
