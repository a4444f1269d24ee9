"""ROLL's bodies, as its client sends them, and the store of what it has submitted."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import Any

import httpx
import pytest
from pydantic import JsonValue

from mmr1_reward_server.api import Outcome, Result
from mmr1_reward_server.dialects import roll
from mmr1_reward_server.dialects.submissions import Finished, Submissions
from mmr1_reward_server.scoring import Overloaded, Scored
from tests.unit.reward_server.reward_peers import Scripted, peers, refusal

ASKED: dict[str, Any] = {
    "priority": 1,
    "project_id": "p",
    "experiment_id": "e",
    "global_step": 0,
    "data_id": "d0",
    "rollout_id": "r0",
    "prompt": "How many dogs?",
    "response": "<answer>3</answer>",
    "reward_info": {"ground_truth": "3"},
    "reward_manager": [{"plugin_name": "perception"}],
    "timeout": 300,
}


async def submit(http: httpx.AsyncClient, path: str = "/submit_task", **changes: Any) -> dict[str, Any]:
    answer = await http.post(path, json=ASKED | changes, headers={"XRL-Authorization": "Bearer x", "BusinessType": "t"})
    assert answer.status_code == 200
    return dict(answer.json())


async def fetch(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    """As the client asks: a GET with a body."""
    answer = await http.request("GET", "/task_result", json={"reward_request_id": name})
    assert answer.status_code == 200
    return dict(answer.json())


async def wait_for(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    for _ in range(200):
        if (result := await fetch(http, name))["errcode"] != 1:
            return result
        await asyncio.sleep(0.01)
    raise AssertionError("still running")


def done(score: float | None, message: str = "ok") -> dict[str, Any]:
    return {"errcode": 0, "errmsg": message, "reward_score": score, "dimention_reward_score": {}}


@pytest.mark.parametrize(
    ("path", "changes", "score"),
    [
        ("/submit_task", {}, 1.0),
        ("/submit_task", {"response": "<answer>4</answer>"}, 0.0),
        ("/submit_task", {"response": "no idea"}, 0.0),
        ("/submit_task/ocr", {"reward_info": {"ground_truth": "4"}}, 0.25),
        ("/submit_task", {"reward_manager": [{"plugin_name": "ocr"}], "reward_info": {"ground_truth": "4"}}, 0.25),
        ("/submit_task", {"reward_info": {"task": "ocr", "text": "4"}}, 0.25),
        ("/submit_task", {"reward_info": {"ground_truth": {"task": "ocr", "text": "4"}}}, 0.25),
        ("/submit_task", {"reward_info": 3, "reward_manager": []}, 1.0),
    ],
)
async def test_bodies(path: str, changes: dict[str, Any], score: float) -> None:
    async with peers(roll) as http:
        submitted = await submit(http, path, **changes)
        name = submitted["reward_request_id"]
        assert submitted == {"errcode": 0, "errmsg": "ok", "reward_request_id": name}
        assert await wait_for(http, name) == done(score)
        by_query = await http.get("/task_result", params={"reward_request_id": name})
        assert by_query.json() == done(score)


async def test_each_submission_has_an_id_of_its_own() -> None:
    async with peers(roll) as http:
        names = {(await submit(http))["reward_request_id"] for _ in range(20)}
    assert len(names) == 20
    assert all(len(name) >= 20 for name in names)


@pytest.mark.parametrize(
    ("steps", "score", "message"),
    [
        (["ok"], 0.5, "ok"),
        (["invalid_output"], 0.0, "ok"),
        (["verifier_error", "ok"], None, "why"),  # the client itself submits again
        (["timeout", "ok"], None, "why"),
        (["overloaded", "ok"], 0.5, "ok"),
        (["overloaded"], None, "not scored: no capacity came free in time: 9 items are pending"),
    ],
)
async def test_outcomes_and_overload(steps: list[str], score: float | None, message: str) -> None:
    async with peers(roll, Scripted(*steps)) as http:
        name = (await submit(http, timeout=0.1))["reward_request_id"]
        assert await wait_for(http, name) == done(score, message)


async def test_it_runs_until_it_is_done() -> None:
    async with peers(roll, Scripted("ok", seconds=0.1)) as http:
        name = (await submit(http))["reward_request_id"]
        assert (await fetch(http, name))["errcode"] == 1
        assert await wait_for(http, name) == done(0.5)


async def test_an_unknown_id_is_to_be_submitted_again() -> None:
    async with peers(roll) as http:
        assert await fetch(http, "r0") == done(None, "no result under this id (any more): submit it again")


async def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll, "_ROOM_SECONDS", 0.1)
    async with peers(roll, Scripted("ok", seconds=0.5), max_held_requests=2) as http:
        names = [(await submit(http))["reward_request_id"] for _ in range(2)]
        refused = await submit(http)
        assert (refused["errcode"], refused["reward_request_id"]) == (2, None)
        assert "2 submissions" in refused["errmsg"]
        assert [await wait_for(http, name) for name in names] == [done(0.5)] * 2
        assert (await submit(http))["errcode"] == 0


@pytest.mark.parametrize("changes", [{"response": None}, {"timeout": 0}, {"timeout": "long"}, {"reward_manager": {}}])
async def test_other_forms_are_refused(changes: dict[str, Any]) -> None:
    async with peers(roll) as http:
        assert refusal(await http.post("/submit_task", json=ASKED | changes)) == (422, "invalid_request")
        assert refusal(await http.get("/task_result")) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ({"task": "countin"}, "did you mean 'counting'"),
        ({"task": "ocr", "param": 3}, "unknown key 'param'"),
        ("a few", "solution for task counting"),
    ],
)
async def test_a_wrong_label_is_a_result_without_a_score(
    caplog: pytest.LogCaptureFixture, label: Any, reason: str
) -> None:
    seen: list[str] = []
    async with peers(roll, on_scored=lambda _, one: seen.append(one.outcome.value)) as http:
        result = await wait_for(http, (await submit(http, reward_info={"ground_truth": label}))["reward_request_id"])
    assert (result["errcode"], result["reward_score"]) == (0, None)
    assert reason in result["errmsg"]
    assert seen == ["verifier_error"]
    assert [reason in str(record.__dict__["fields"]) for record in caplog.records] == [True]


async def test_what_stands_beside_the_ground_truth_counts() -> None:
    params = {"response_space": "normalized_1"}
    info = {"ground_truth": [10, 20, 20, 40], "task": "grounding", "params": params, "image_size": [100, 200]}
    async with peers(roll) as http:
        name = (await submit(http, response="[0.1, 0.1, 0.2, 0.2]", reward_info=info))["reward_request_id"]
        assert await wait_for(http, name) == done(pytest.approx(1.0))


def scored(reward: float) -> Scored:
    return Scored(Result(id="0", outcome=Outcome.OK, reward=reward), 0.0)


def reward_in(store: Submissions, name: str) -> float | None:
    kept = store.result(name)
    return None if kept is None else kept.reward


async def test_the_store_forgets_the_old_and_the_many() -> None:
    now = 0.0
    store = Submissions(max_running=10, max_bytes=100, max_finished=3, kept_seconds=60, clock=lambda: now)

    async def run() -> Scored:
        return scored(now)

    names = []
    for _ in range(5):
        names.append(await store.submit(run, num_bytes=10, room_seconds=0))
        await asyncio.sleep(0.01)
        now += 1
    assert [reward_in(store, name) for name in names] == [None, None, 2, 3, 4]
    now = 63.5
    assert [reward_in(store, name) for name in names] == [None, None, None, None, 4]


async def test_bytes_of_what_runs_are_bounded() -> None:
    store = Submissions(max_running=10, max_bytes=100)
    release = asyncio.Event()

    async def run() -> Scored:
        await release.wait()
        return scored(1)

    first = await store.submit(run, num_bytes=60, room_seconds=0)
    with pytest.raises(Overloaded, match="1 submissions of 60 bytes"):
        await store.submit(run, num_bytes=60, room_seconds=0.1)
    began = time.monotonic()
    with pytest.raises(Overloaded):
        await store.submit(run, num_bytes=101, room_seconds=60)  # it would never fit
    assert time.monotonic() - began < 1
    assert store.is_running(first)
    release.set()
    second = await store.submit(run, num_bytes=60, room_seconds=5)
    await asyncio.sleep(0.01)
    assert [reward_in(store, name) for name in (first, second)] == [1, 1]


async def test_nothing_of_a_finished_one_is_kept_that_grows_with_the_response() -> None:
    store = Submissions(max_running=1, max_bytes=2_000_000)
    read: list[JsonValue] = [*range(10_000)]
    watched: list[weakref.ref[Result]] = []

    async def run() -> Scored:
        result = Result(id="0", outcome=Outcome.OK, reward=0.5, components={"a": 1.0}, parsed=read, detail="why")
        watched.append(weakref.ref(result))
        return Scored(result, 0.0)

    name = await store.submit(run, num_bytes=1_000_000, room_seconds=0)
    await asyncio.sleep(0.01)
    gc.collect()
    assert store.result(name) == Finished(Outcome.OK, 0.5, "why")
    assert [one() for one in watched] == [None]
