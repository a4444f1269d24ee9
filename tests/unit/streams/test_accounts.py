"""`mmr1 ledger` and the gauges: the same accounts, by reason, by policy version and by age, on a real Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from prometheus_client import REGISTRY

from mmr1.errors import ConfigurationError
from mmr1.ledger_cli import main
from mmr1.records import PolicyVersion
from mmr1.streams import PromptConsumer, RunQueue, read_accounts
from mmr1.streams.accounts import read_dead
from tests.conftest import make_group, make_prompt
from tests.unit.streams.test_queue import V0, with_consumers

V1 = PolicyVersion(1, 1)


def busy_run(url: str) -> RunQueue:
    """Two trained, one dropped, one dead, one applied, one ready, one prompt; sampled by versions 1.0 and 1.1."""
    queue = RunQueue(redis.Redis.from_url(url), "test")
    queue.become_writer()
    for position in range(7):
        queue.feed(make_prompt(position))

    async def serve(consumer: PromptConsumer) -> None:
        held = await consumer.take(6, V0, 1)
        for number, delivery in zip((0, 0, 0, 1, 1), held, strict=False):
            assert await consumer.publish(delivery, make_group(delivery.prompt, number=number))
        assert await consumer.dead(held[5], "image_unreadable", "a.png: is cut\nat byte 7")

    with_consumers(url, serve, "a")
    ids = [group.prompt.id for group in queue.read(5)]
    queue.mark_applied(ids[:4])
    queue.acknowledge(ids[:2])
    queue.drop(ids[2], "stale")
    return queue


def test_groups_are_counted_by_the_version_that_sampled_them(redis_url: str) -> None:
    queue = busy_run(redis_url)
    accounts = queue.accounts()
    assert accounts.known and accounts.ledger.balanced
    assert accounts.by_version == {
        V0: {"ready": 0, "trained": 2, "dropped": 1},
        V1: {"ready": 2, "trained": 0, "dropped": 0},
    }
    assert read_accounts(redis.Redis.from_url(redis_url), "test").by_version == accounts.by_version


def test_the_oldest_entry_of_each_stream_has_its_age(redis_url: str) -> None:
    queue = RunQueue(redis.Redis.from_url(redis_url), "test")
    queue.become_writer()
    accounts = queue.accounts()
    assert accounts.oldest_prompt_seconds is None and accounts.oldest_group_seconds is None
    queue.feed(make_prompt(0))
    asyncio.run(asyncio.sleep(0.2))
    queue.feed(make_prompt(1))
    accounts = queue.accounts()
    assert accounts.oldest_prompt_seconds is not None and 0.2 <= accounts.oldest_prompt_seconds < 60
    assert accounts.oldest_group_seconds is None


def test_the_command_prints_the_equation_by_reason_and_by_version(redis_url: str, capsys: Any) -> None:
    busy_run(redis_url)
    assert main(["test", "--redis-url", redis_url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run test, policy version 1.0"
    assert [line.split() for line in lines[1:5]] == [
        ["fed", "7"],
        ["trained", "2"],
        ["dropped", "1", "stale", "1"],
        ["dead", "1", "image_unreadable", "1"],
    ]
    assert lines[5].startswith("  pending          3   1 prompts, 1 ready, 1 applied; oldest prompt ")
    assert lines[6] == "balanced: 7 = 2 + 1 + 1 + 3"
    assert [line.split() for line in lines[8:]] == [
        ["sampled", "by", "ready", "trained", "dropped"],
        ["1.0", "0", "2", "1"],
        ["1.1", "2", "0", "0"],
    ]


def test_json_has_everything_and_the_dead_are_listed_with_their_last_error(redis_url: str, capsys: Any) -> None:
    busy_run(redis_url)
    assert main(["test", "--redis-url", redis_url, "--json", "--dead"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["pending_by_state"] == {"prompts": 1, "ready": 1, "applied": 1}
    assert document["by_version"]["1.0"] == {"ready": 0, "trained": 2, "dropped": 1}
    assert document["dropped"] == {"stale": 1} and document["balanced"] is True
    [dead] = document["dead_prompts"]
    assert (dead["id"], dead["reason"], dead["detail"]) == ("5/0", "image_unreadable", "a.png: is cut\nat byte 7")
    assert main(["test", "--redis-url", redis_url, "--dead"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("5/0  20") and last.endswith(" UTC  image_unreadable: a.png: is cut at byte 7")


def test_accounts_that_do_not_balance_are_exit_code_1(redis_url: str, capsys: Any) -> None:
    busy_run(redis_url)
    client = redis.Redis.from_url(redis_url)
    client.hincrby("mmr1:{test}:ledger", "trained", 1)
    assert main(["test", "--redis-url", redis_url]) == 1
    assert "NOT BALANCED: 7 != 3 + 1 + 1 + 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda url: ["nobody", "--redis-url", url], "run 'nobody' is not in the Redis at .*; it holds test; give"),
        (lambda url: ["test", "--redis-url", "redis://127.0.0.1:1/0"], "redis_url redis://127.0.0.1:1/0: .*refused"),
        (lambda url: ["test", "--redis-url", "redis://:secret@127.0.0.1:1/0"], "--redis-url holds a password"),
    ],
)
def test_no_such_run_and_no_such_redis_are_named(
    redis_url: str, arguments: Callable[[str], list[str]], words: str
) -> None:
    busy_run(redis_url)
    with pytest.raises(ConfigurationError, match=words) as raised:
        main(arguments(redis_url))
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)


def test_a_redis_that_lets_us_read_nothing_is_one_line(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    busy_run(redis_url)
    client = redis.Redis.from_url(redis_url)
    client.execute_command("ACL", "SETUSER", "guest", "on", ">word", "+@connection", "+info")
    try:
        monkeypatch.setenv("MMR1_REDIS_PASSWORD", "word")
        url = redis_url.replace("redis://", "redis://guest@")
        with pytest.raises(ConfigurationError, match=r"redis_url redis://.*127.*evalsha") as raised:
            main(["test", "--redis-url", url])
    finally:
        client.execute_command("ACL", "DELUSER", "guest")
    assert "\n" not in str(raised.value) and " word" not in str(raised.value)


def test_a_page_of_the_dead_ends_nothing(redis_url: str) -> None:
    queue = RunQueue(redis.Redis.from_url(redis_url), "test")
    queue.become_writer()
    for position in range(7):
        queue.feed(make_prompt(position))

    async def serve(consumer: PromptConsumer) -> None:
        for held in await consumer.take(7, V0, 1):
            await consumer.dead(held, "prompt_refused", "too long")

    with_consumers(redis_url, serve, "a")
    dead = list(read_dead(redis.Redis.from_url(redis_url), "test", page=3))
    assert [prompt.id for prompt in dead] == [f"{position}/0" for position in range(7)]


def test_prometheus_has_the_same_accounts(redis_url: str) -> None:
    from mmr1_learner.metrics import export_accounts

    queue = busy_run(redis_url)
    accounts = queue.accounts()
    export_accounts(accounts)

    def gauge(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(f"mmr1_ledger_{name}", labels)

    states = ("fed", "trained", "dropped", "dead", "pending")
    assert [gauge("groups", state=state) for state in states] == [7, 2, 1, 1, 3]
    assert gauge("balanced") == 1
    assert gauge("reasons", state="dropped", reason="stale") == 1
    assert gauge("reasons", state="dead", reason="image_unreadable") == 1
    assert [gauge("pending", station=station) for station in ("prompts", "ready", "applied")] == [1, 1, 1]
    assert gauge("ready_by_version", version="1.1") == 2
    assert gauge("ready_by_version", version="1.0") is None, "none of it waits"
    assert gauge("oldest_seconds", stream="groups") == accounts.oldest_group_seconds
    queue.acknowledge(sorted(queue.pending_ids()))
    export_accounts(queue.accounts())
    assert gauge("ready_by_version", version="1.1") is None
