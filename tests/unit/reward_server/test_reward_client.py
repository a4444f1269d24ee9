"""The client against the real application in process, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import httpx
import pytest

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.app import create_app
from mmr1_reward_server.client import RewardClient, RewardServerError
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_scorers import item

ITEMS = [item("counting", name="a"), item("counting", "<answer>4</answer>", name="b")]


def client_of(answer: Callable[[httpx.Request], httpx.Response], deadline_seconds: float = 0.5) -> RewardClient:
    return RewardClient("http://reward", deadline_seconds, httpx.MockTransport(answer))


def right(request: httpx.Request) -> httpx.Response:
    items = json.loads(request.content)["items"]
    results = [{"id": one["id"], "outcome": "ok", "reward": 1.0, "components": {}} for one in items]
    return httpx.Response(200, json={"results": results, "version": "9", "new_in_9": True})


def check(results: list[Result], outcome: Outcome, detail: str) -> None:
    assert [(result.id, result.outcome, result.reward) for result in results] == [(i.id, outcome, None) for i in ITEMS]
    assert all(detail in result.detail for result in results), results[0].detail


async def test_scores_and_tasks_of_the_real_application() -> None:
    app = create_app(Settings(workers=1))
    async with RewardClient("http://reward", 5, httpx.ASGITransport(app)) as client:
        results = await client.score(ITEMS)
        assert [(result.id, result.reward) for result in results] == [("a", 1.0), ("b", 0.0)]
        assert [task.name for task in await client.tasks()] == [task.name for task in builtin_tasks()]
        assert await client.score([]) == []


async def test_the_servers_refusal_reaches_the_caller() -> None:
    app = create_app(Settings(max_items=1))
    async with RewardClient("http://reward", 5, httpx.ASGITransport(app)) as client:
        check(await client.score(ITEMS), Outcome.VERIFIER_ERROR, "413: 2 items in one request, the limit is 1")


async def test_a_newer_server_may_say_more() -> None:
    async with client_of(right) as client:
        assert [result.reward for result in await client.score(ITEMS)] == [1.0, 1.0]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_overload_is_tried_again(status: int) -> None:
    answers = iter([httpx.Response(status), httpx.Response(status)])
    async with client_of(lambda request: next(answers, None) or right(request), 5) as client:
        assert (await client.score(ITEMS))[0].outcome is Outcome.OK


async def test_a_lost_connection_is_tried_again() -> None:
    failures = iter([httpx.ConnectError("refused"), httpx.RemoteProtocolError("left"), httpx.ReadError("reset")])

    def answer(request: httpx.Request) -> httpx.Response:
        for failure in failures:
            raise failure
        return right(request)

    async with client_of(answer, 5) as client:
        assert (await client.score(ITEMS))[0].outcome is Outcome.OK


async def test_retry_after_is_respected() -> None:
    asked: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(time.monotonic())
        return httpx.Response(503, headers={"Retry-After": "1"}) if len(asked) == 1 else right(request)

    async with client_of(answer, 5) as client:
        await client.score(ITEMS)
    assert asked[1] - asked[0] >= 1


async def test_out_of_reach_until_the_deadline() -> None:
    began = time.monotonic()
    async with RewardClient("http://127.0.0.1:1", 0.5) as client:
        check(await client.score(ITEMS), Outcome.VERIFIER_ERROR, "within 0.5 s: ConnectError")
    assert 0.3 < time.monotonic() - began < 2


async def test_overloaded_until_the_deadline() -> None:
    async with client_of(lambda _: httpx.Response(503)) as client:
        check(await client.score(ITEMS), Outcome.VERIFIER_ERROR, "answered 503")


async def test_no_answer_by_the_deadline() -> None:
    async def hold(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return right(request)

    began = time.monotonic()
    async with RewardClient("http://reward", 0.3, httpx.MockTransport(hold)) as client:
        check(await client.score(ITEMS), Outcome.TIMEOUT, "did not answer within 0.3 s")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("content", ["", "<html>", "[]", "{}", '{"results": [], "version": "1"}', "\udcff"])
async def test_nonsense_is_no_reward(content: str) -> None:
    answer = content.encode("utf-8", "surrogateescape")
    async with client_of(lambda _: httpx.Response(200, content=answer)) as client:
        check(await client.score(ITEMS), Outcome.VERIFIER_ERROR, "answered ")


@pytest.mark.parametrize(
    "second",
    [
        "",
        '{"id": "c", "outcome": "ok", "reward": 1}',
        '{"id": "b", "outcome": "ok", "reward": null}',
        '{"id": "b", "outcome": "ok"}',
        '{"id": "b", "outcome": "timeout", "reward": 0}',
        '{"id": "b", "outcome": "fine", "reward": 1}',
        '{"id": "b", "outcome": "ok", "reward": NaN}',
        '{"id": "b", "outcome": "ok", "reward": 1}, {"id": "b", "outcome": "ok", "reward": 1}',
    ],
)
async def test_one_wrong_result_spoils_the_answer(second: str) -> None:
    results = ", ".join(filter(None, ['{"id": "a", "outcome": "ok", "reward": 1}', second]))
    content = f'{{"results": [{results}], "version": "1"}}'
    async with client_of(lambda _: httpx.Response(200, content=content)) as client:
        check(await client.score(ITEMS), Outcome.VERIFIER_ERROR, "answered ")


@pytest.mark.parametrize("status", [301, 400, 404, 422, 500])
async def test_other_statuses_are_not_tried_again(status: int) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, text="no")

    async with client_of(answer) as client:
        check(await client.score(ITEMS), Outcome.VERIFIER_ERROR, f"answered {status}: no")
        with pytest.raises(RewardServerError):
            await client.score_or_raise(ITEMS)
        with pytest.raises(RewardServerError):
            await client.tasks()
    assert len(asked) == 3


async def test_an_item_that_utf8_cannot_hold_costs_no_other() -> None:
    tasks = builtin_tasks()
    app = create_app(Settings(), tasks, InProcessScoring(tasks))
    texts = ["<answer>3</answer>", "\ud800<answer>3</answer>", "\udc00"]
    items = [Item(id="a", task="counting", response=text, solution=3, image_size=(8, 8)) for text in texts]
    async with RewardClient("http://reward", 5, httpx.ASGITransport(app)) as client:
        assert [result.reward for result in await client.score(items)] == [1.0, 1.0, 0.0]
        unreadable = await client.score([items[0].model_copy(update={"solution": "\ud800"}), items[0]])
    assert [result.outcome for result in unreadable] == [Outcome.VERIFIER_ERROR, Outcome.OK]


async def test_cancelling_is_not_swallowed() -> None:
    async def hold(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return right(request)

    async with RewardClient("http://reward", 30, httpx.MockTransport(hold)) as client:
        call = asyncio.ensure_future(client.score(ITEMS))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://"])
async def test_a_wrong_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a reward server"):
        RewardClient(url, 1)


@pytest.mark.parametrize("deadline_seconds", [0.3, 5])
async def test_a_password_in_the_url_is_sent_and_never_shown(
    deadline_seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["Authorization"])
        return httpx.Response(503 if deadline_seconds < 1 else 418, text="no")

    caplog.set_level("DEBUG")
    url = "http://anyone:secret-key@reward:8000"
    async with RewardClient(url, deadline_seconds, httpx.MockTransport(answer)) as client:
        check(await client.score(ITEMS), Outcome.VERIFIER_ERROR, "http://reward:8000")
        with pytest.raises(RewardServerError) as caught:
            await client.tasks()
    assert set(sent) == {httpx.BasicAuth("anyone", "secret-key")._auth_header}
    assert "http://reward:8000" in caplog.text
    assert "secret-key" not in caplog.text + str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://a:secret-key@reward", "a:secret-key@reward", "http://a:secret-key@", "http://a:secret-key@b:port"]
)
def test_a_wrong_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a reward server") as caught:
        RewardClient(url, 1)
    assert "secret-key" not in str(caught.value)


def numbered(count: int) -> list[Item]:
    return [item("counting", name=str(number)) for number in range(count)]


async def test_parts_go_at_the_same_time_and_keep_their_order() -> None:
    num_open = most_open = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal num_open, most_open
        num_open += 1
        most_open = max(most_open, num_open)
        items = json.loads(request.content)["items"]
        await asyncio.sleep(0.02 if int(items[0]["id"]) % 3 else 0.05)
        num_open -= 1
        return httpx.Response(418) if items[0]["id"] == "4" else right(request)

    async with RewardClient("http://reward", 5, httpx.MockTransport(answer)) as client:
        results = await client.score_in_parts(numbered(21), items_per_request=2, max_requests=4)
        assert await client.score_in_parts([]) == []
    assert [result.id for result in results] == [str(number) for number in range(21)]
    assert [result.id for result in results if result.reward is None] == ["4", "5"]
    assert most_open == 4


async def test_a_part_that_is_too_large_is_sent_in_halves() -> None:
    sizes: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        items = json.loads(request.content)["items"]
        sizes.append(len(items))
        too_large = len(items) > 3 or items[0]["id"] == "6"
        return httpx.Response(413) if too_large else right(request)

    async with client_of(answer) as client:
        results = await client.score_in_parts(numbered(8))
        assert [result.reward for result in await client.score(numbered(4))] == [None] * 4  # one request, as asked
    assert sizes[0] == 8
    assert [result.id for result in results] == [str(number) for number in range(8)]
    assert [result.id for result in results if result.reward is None] == ["6"]


async def test_long_responses_go_in_smaller_parts() -> None:
    sizes: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sizes.append(len(json.loads(request.content)["items"]))
        return right(request)

    async with client_of(answer, 20) as client:
        items = [item("counting", "a" * 1_500_000, name=str(number)) for number in range(3)]
        assert [result.reward for result in await client.score_in_parts(items)] == [1.0] * 3
    assert sizes == [2, 1]


async def test_the_key_goes_to_no_other_host() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(307, headers={"Location": "http://elsewhere/v1/score"})

    async with RewardClient("http://reward", 1, httpx.MockTransport(answer), api_key="a-secret-key") as client:
        check(await client.score(ITEMS), Outcome.VERIFIER_ERROR, "307")
    assert asked == ["reward"]
