"""The HTTP contract, driven in process: bodies, limits, errors, metrics, the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from mmr1_reward_server import __version__
from mmr1_reward_server import app as app_module
from mmr1_reward_server.api import Item, ScoreRequest, ScoreResponse, TaskList
from mmr1_reward_server.app import create_app
from mmr1_reward_server.auth import KEY_VARIABLE, OPEN_PATHS
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import WorkersCannotStart
from mmr1_reward_server.settings import Settings
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_live import live
from tests.unit.reward_server.reward_scorers import FAILING, item

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = Settings(
    max_body_bytes=20_000, max_items=8, max_response_chars=1000, max_pending_items=8, workers=1, reward=FAILING
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app() -> AsyncIterator[FastAPI]:
    """One for all tests: its worker takes half a second to start."""
    app = create_app(LIMITS)
    async with app.router.lifespan_context(app):
        yield app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward")


@pytest_asyncio.fixture(loop_scope="module")
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def body(*items: Item) -> bytes:
    return ScoreRequest(items=list(items)).model_dump_json().encode()


def error(response: httpx.Response) -> tuple[int, str]:
    assert list(response.json()) == ["error"]
    assert "\n" not in response.json()["error"]["message"]
    return response.status_code, response.json()["error"]["code"]


async def test_the_contract_to_the_letter(http: httpx.AsyncClient) -> None:
    items: list[dict[str, Any]] = [
        {"id": "a", "task": "counting", "response": "<answer>3</answer>", "solution": 4, "params": {"score": "graded"}},
        {"id": "b", "task": "counting", "response": "?", "solution": "4", "image_size": [640, 480]},
        {"id": "a", "task": "raises", "response": "3", "solution": None},
    ]
    response = await http.post("/v1/score", json={"items": items})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    ok = {"exact": 0.0, "graded": 0.75}
    a, b, c = response.json()["results"]
    assert a == {
        "id": "a",
        "outcome": "ok",
        "reward": 0.75,
        "components": ok,
        "parsed": {"count": 3},
        "detail": "read 3, expected 4",
    }
    no_number = {"components": {}, "parsed": None, "detail": "no number in the response"}
    assert b == {"id": "b", "outcome": "invalid_output", "reward": 0.0, **no_number}
    assert (c["id"], c["outcome"], c["reward"]) == ("a", "verifier_error", None)
    assert response.json()["version"] == __version__


async def test_bad_model_output_is_never_an_http_error(http: httpx.AsyncClient) -> None:
    responses = ["", "\x00", "x" * 1001, "<answer>" * 10, "😀", "{" * 100, "\\"]
    answer = await http.post("/v1/score", content=body(*(item("counting", text) for text in responses)))
    assert answer.status_code == 200
    assert {result["outcome"] for result in answer.json()["results"]} == {"invalid_output"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", (400, "not_json")),
        (b"{", (400, "not_json")),
        (b"\xff", (400, "not_json")),
        (b"[" * 5000, (400, "too_deep")),
        (b'{"items":[{"id":"1","task":"counting","response":"3","solution":' + b"[" * 300, (400, "too_deep")),
        (b'{"items":[{"id":"' + b"1" * 1025 + b'","task":"x","response":"","solution":1}]}', (422, "invalid_request")),
        (b'{"items":[{"id":"1","task":"' + b"x" * 257 + b'","response":"","solution":1}]}', (422, "invalid_request")),
        (b'{"items":[{"id":"1","task":"counting","response":"\\ud800","solution":1}]', (400, "not_json")),
        (b"[]", (422, "invalid_request")),
        (b"{}", (422, "invalid_request")),
        (b'{"items":[{}]}', (422, "invalid_request")),
        (b'{"items":[], "more": 1}', (422, "invalid_request")),
        (b'{"items":[{"id":1,"task":"counting","response":"3","solution":3}]}', (422, "invalid_request")),
        (
            b'{"items":[{"id":"1","task":"counting","response":"3","solution":3,"image_size":[0,1]}]}',
            (422, "invalid_request"),
        ),
        (b'{"items":[{"id":"1","task":"counting","response":"3","solution":3,"param":{}}]}', (422, "invalid_request")),
        (b" " * 20_001, (413, "body_too_large")),
        (body(*[item("counting")] * 9), (413, "too_many_items")),
    ],
)
async def test_refused_requests(http: httpx.AsyncClient, content: bytes, expected: tuple[int, str]) -> None:
    assert error(await http.post("/v1/score", content=content)) == expected


async def test_half_a_surrogate_pair_costs_no_other_item(http: httpx.AsyncClient) -> None:
    texts = [
        r"<answer>3</answer>",
        r"\ud800<answer>3</answer>",
        r"\udc00 3",
        r"\ud83d\ude00 3",
        r"\\ud800 3",
        r"\ud800",
    ]
    items = ",".join(f'{{"id":"1","task":"counting","response":"{text}","solution":3}}' for text in texts)
    answer = await http.post("/v1/score", content=f'{{"items":[{items}]}}')
    assert answer.status_code == 200
    assert [one["reward"] for one in answer.json()["results"]] == [1.0] * 5 + [0.0]


async def test_a_body_without_a_declared_length_is_limited_too(http: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 10_000

    assert error(await http.post("/v1/score", content=chunks())) == (413, "body_too_large")


async def test_errors_name_the_place(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/v1/score", json={"items": [{"id": "1", "task": "counting", "response": 3, "solution": 1}]}
    )
    assert response.json()["error"]["message"] == "items.0.response: Input should be a valid string"


async def test_overload_is_503_with_retry_after(http: httpx.AsyncClient) -> None:
    slow = asyncio.ensure_future(http.post("/v1/score", content=body(item("sleeps", solution=0.3), item("counting"))))
    await asyncio.sleep(0.1)
    refused = await http.post("/v1/score", content=body(*[item("counting")] * 7))
    assert error(refused) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert (await slow).status_code == 200
    assert (await http.post("/v1/score", content=body(*[item("counting")] * 7))).status_code == 200


async def test_all_bodies_together_are_limited() -> None:
    limits = LIMITS.model_copy(update={"max_pending_bytes": 25_000, "reward": ()})
    app = create_app(limits)
    arriving = asyncio.Event()

    async def slow_body() -> AsyncIterator[bytes]:
        yield b" " * 15_000
        arriving.set()
        await asyncio.sleep(0.3)
        yield b"{"

    async with client_of(app) as client:
        slow = asyncio.ensure_future(client.post("/v1/score", content=slow_body()))
        await arriving.wait()
        assert error(await client.post("/v1/score", content=b" " * 15_000)) == (503, "overloaded")
        assert error(await slow) == (400, "not_json")
        assert error(await client.post("/v1/score", content=b" " * 15_000)) == (400, "not_json")


async def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.02)

    async with client_of(create_app(Settings(body_seconds=0.1))) as client:
        assert error(await client.post("/v1/score", content=endless())) == (408, "body_too_slow")


def status_line(url: str, request: bytes) -> bytes:
    """The first line of the answer to these bytes and nothing after them."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=5) as connection:
        connection.sendall(request)
        return connection.makefile("rb").readline().strip()


async def test_a_body_that_never_begins_is_given_up_and_one_that_is_not_there_not_waited_for() -> None:
    tasks = builtin_tasks()
    with live(create_app(Settings(body_seconds=0.2), tasks, InProcessScoring(tasks))) as url:
        began = time.monotonic()
        for path in (b"/v1/score", b"/get_reward/counting"):
            for header in (b"Content-Length: 10", b"Transfer-Encoding: chunked"):
                head = b"POST %b HTTP/1.1\r\nHost: reward\r\n%b\r\n\r\n" % (path, header)
                line = await asyncio.to_thread(status_line, url, head)
                assert line.startswith(b"HTTP/1.1 408"), (path, header, line)
        assert time.monotonic() - began >= 4 * 0.2
        for path in (b"/v1/tasks", b"/healthz", b"/task_result?reward_request_id=a"):
            began = time.monotonic()
            line = await asyncio.to_thread(status_line, url, b"GET %b HTTP/1.1\r\nHost: reward\r\n\r\n" % path)
            assert line == b"HTTP/1.1 200 OK", (path, line)
            assert time.monotonic() - began < 0.2


async def test_workers_that_do_not_start_are_a_named_error_and_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(workers=1))
    monkeypatch.setattr("sys.executable", "/bin/false")
    async with client_of(app) as client:
        answer = await client.post("/v1/score", content=body(item("counting")))
        assert answer.json()["results"][0]["outcome"] == "verifier_error"
        assert "no scoring process starts: it ended before it was ready" in answer.json()["results"][0]["detail"]
        assert error(await client.get("/readyz")) == (503, "not_ready")
        assert error(await client.post("/v1/score", content=body(item("counting")))) == (503, "overloaded")
        assert (await client.get("/healthz")).status_code == 200
        assert "mmr1_reward_workers_alive 0.0" in (await client.get("/metrics")).text
    with pytest.raises(WorkersCannotStart):
        await app.state.scoring.start()
    await app.state.scoring.close()


async def test_other_paths_and_methods(http: httpx.AsyncClient) -> None:
    assert error(await http.get("/nowhere"))[0] == 404
    assert error(await http.get("/v1/score"))[0] == 405
    assert error(await http.get("/docs"))[0] == 404  # it would load scripts from another host


async def test_every_listed_example_is_what_the_server_answers() -> None:
    app = create_app(Settings(workers=1))
    async with app.router.lifespan_context(app), client_of(app) as http:
        listed = TaskList.model_validate_json((await http.get("/v1/tasks")).content)
        examples = [task.example for task in listed.tasks if task.example is not None]
        assert len(examples) == len(builtin_tasks())
        answer = await http.post("/v1/score", content=body(*(example.item for example in examples)))
        assert ScoreResponse.model_validate_json(answer.content).results == [example.result for example in examples]


async def test_metrics() -> None:
    app = create_app(LIMITS)
    async with client_of(app) as http:
        await http.post(
            "/v1/score", content=body(item("counting"), item("raises"), item("x" * 200), item("counting", "?"))
        )
        await http.post("/v1/score", content=body(item("exits"), item("counting")))
        await http.get("/nowhere/1")
        await http.get("/nowhere/2")
        lines = (await http.get("/metrics")).text.splitlines()
    await app.state.scoring.close()
    for line in (
        'mmr1_reward_requests_total{route="/v1/score",status="200"} 2.0',
        'mmr1_reward_requests_total{route="other",status="404"} 2.0',
        'mmr1_reward_items_total{outcome="ok",task="counting"} 2.0',
        'mmr1_reward_items_total{outcome="invalid_output",task="counting"} 1.0',
        'mmr1_reward_items_total{outcome="verifier_error",task="raises"} 1.0',
        'mmr1_reward_items_total{outcome="verifier_error",task="unknown"} 1.0',
        'mmr1_reward_value_count{task="counting"} 3.0',
        'mmr1_reward_value_bucket{le="0.0",task="counting"} 1.0',
        'mmr1_reward_value_bucket{le="+Inf",task="counting"} 3.0',
        'mmr1_reward_item_seconds_count{task="counting"} 3.0',
        'mmr1_reward_request_seconds_count{route="/v1/score"} 2.0',
        'mmr1_reward_worker_restarts_total{cause="died"} 1.0',
        "mmr1_reward_workers_alive 1.0",
        "mmr1_reward_queue_depth 0.0",
        "mmr1_reward_held_requests 0.0",
        "mmr1_reward_held_bytes 0.0",
    ):
        assert line in lines, line


async def test_openapi_is_complete(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas["Item"]["required"] == ["id", "task", "response", "solution"]
    assert schemas["Outcome"]["enum"] == ["ok", "invalid_output", "verifier_error", "timeout"]
    references = {part.partition('"')[0] for part in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]}
    assert references <= set(schemas)
    posted = document["paths"]["/v1/score"]["post"]
    assert posted["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ScoreRequest"
    }
    assert set(posted["responses"]) == {"200", "400", "401", "408", "413", "422", "503"}


async def test_openapi_names_the_keys_where_there_are_any(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = (await http.get("/openapi.json")).json()
    assert "security" not in without and "securitySchemes" not in without["components"]
    monkeypatch.setenv(KEY_VARIABLE, "key-of-environment")
    document = create_app(Settings()).openapi()
    assert set(document["components"]["securitySchemes"]) == {name for one in document["security"] for name in one}
    assert all("security" not in one for one in document["paths"]["/v1/score"].values())
    for path in OPEN_PATHS:
        assert [one["security"] for one in document["paths"][path].values()] == [[]], path


async def test_probes_may_ask_with_head() -> None:
    tasks = builtin_tasks()
    with live(create_app(Settings(), tasks, InProcessScoring(tasks))) as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            for path in ("/", "/health", "/healthz", "/readyz"):
                with_get, with_head = await client.get(path), await client.head(path)
                assert (with_head.status_code, with_head.content) == (200, b""), path
                assert with_head.headers["content-length"] == str(len(with_get.content))
            assert (await client.head("/v1/score")).status_code == 405


@pytest.mark.parametrize(
    ("options", "installed", "warned"),
    [({}, False, True), ({}, True, False), ({"default_task": "counting"}, False, False)],
)
async def test_a_default_task_that_lacks_math_verify_is_warned_of(
    options: dict[str, str],
    installed: bool,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(app_module, "is_installed", lambda: installed)
    create_app(Settings(**options))
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == warned
    assert all("'mmr1-reward-server[math]'" in line and "--default-task" in line for line in lines)


async def test_tasks_and_scoring_can_be_given() -> None:
    registry = builtin_tasks()
    app = create_app(Settings(), registry, InProcessScoring(registry))
    async with client_of(app) as client:
        assert (await client.post("/v1/score", content=body(item("counting")))).json()["results"][0]["reward"] == 1.0
