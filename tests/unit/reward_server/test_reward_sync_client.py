"""The client without an event loop: the same answers, retries and deadlines as the asynchronous one."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import httpx
import pytest

from mmr1_reward_server.api import Outcome
from mmr1_reward_server.app import create_app
from mmr1_reward_server.client import RewardServerError
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings
from mmr1_reward_server.sync_client import SyncRewardClient
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_live import live
from tests.unit.reward_server.reward_scorers import item

ITEMS = [item("counting", name="a"), item("counting", "<answer>4</answer>", name="b")]


def test_scores_and_tasks_from_several_threads() -> None:
    rewards: list[list[float | None]] = []
    tasks = builtin_tasks()
    app = create_app(Settings(), tasks, InProcessScoring(tasks))
    with live(app) as url, SyncRewardClient(url, 10) as client:
        assert "counting" in [task.name for task in client.tasks()]
        assert client.score([]) == []

        def ask() -> None:
            rewards.append([result.reward for result in client.score_or_raise(ITEMS)])

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert rewards == [[1.0, 0.0]] * 8


def test_overload_is_tried_again() -> None:
    answers = iter([httpx.Response(503), httpx.Response(429)])
    results = [{"id": one.id, "outcome": "ok", "reward": 1.0} for one in ITEMS]

    def answer(_: httpx.Request) -> httpx.Response:
        return next(answers, None) or httpx.Response(200, json={"results": results, "version": "1"})

    with SyncRewardClient("http://reward", 10, httpx.MockTransport(answer)) as client:
        assert [result.reward for result in client.score(ITEMS)] == [1.0, 1.0]


def test_parts_are_sent_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    async def answer(request: httpx.Request) -> httpx.Response:
        await both.wait()  # for ever, if they were sent one after the other
        results = [{"id": one["id"], "outcome": "ok", "reward": 1.0} for one in json.loads(request.content)["items"]]
        return httpx.Response(200, json={"results": results, "version": "1"})

    with SyncRewardClient("http://reward", 10, httpx.MockTransport(answer)) as client:
        results = client.score_in_parts(ITEMS, items_per_request=1)
    assert [(result.id, result.reward) for result in results] == [("a", 1.0), ("b", 1.0)]


def test_its_key_goes_with_each_request() -> None:
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Authorization"))
        return httpx.Response(200, json={"tasks": [], "version": "1"})

    with SyncRewardClient("http://reward", 10, httpx.MockTransport(answer), api_key="a-secret-key") as client:
        client.tasks()
    assert asked == ["Bearer a-secret-key"]


def test_out_of_reach_until_the_deadline() -> None:
    began = time.monotonic()
    with SyncRewardClient("http://127.0.0.1:1", 0.3) as client:
        assert [result.outcome for result in client.score(ITEMS)] == [Outcome.VERIFIER_ERROR] * 2
        with pytest.raises(RewardServerError, match=r"within 0\.3 s"):
            client.score_or_raise(ITEMS)
        with pytest.raises(RewardServerError):
            client.tasks()
    assert time.monotonic() - began < 5


def test_closing_ends_its_thread_and_may_be_repeated() -> None:
    before = threading.active_count()
    client = SyncRewardClient("http://127.0.0.1:1", 1)
    assert threading.active_count() == before + 1
    client.close()
    client.close()
    assert threading.active_count() == before


def test_a_wrong_address_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not the URL of a reward server"):
        SyncRewardClient("reward:8000", 1)
