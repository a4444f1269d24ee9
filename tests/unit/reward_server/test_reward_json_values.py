"""How many JSON values a body may hold: counted before it is parsed, and never wrong to the caller's harm."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server import json_values
from mmr1_reward_server.app import create_app
from mmr1_reward_server.json_values import has_more_values
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings
from tests.unit.reward_server.reward_in_process import InProcessScoring

TASKS = builtin_tasks()

TEXTS = st.text(st.sampled_from('",:[{]}\\ab \n\u00e9'), max_size=20)
VALUES = st.recursive(
    st.one_of(st.none(), st.integers(-9, 9), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=20,
)


def weight(value: Any) -> int:
    if isinstance(value, list):
        return 1 + (sum(map(weight, value)) or 1)
    if isinstance(value, dict):
        return 1 + (sum(1 + weight(one) for one in value.values()) or 1)
    return 1


@settings(max_examples=100, deadline=None)
@given(value=VALUES, escaped=st.booleans(), size=st.sampled_from([1, 2, 7, 2**16]))
def test_what_is_counted_is_what_a_parser_would_make(value: Any, escaped: bool, size: int) -> None:
    text = json.dumps(value, ensure_ascii=escaped).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_SLICE_BYTES", size)
        assert json_values._num_marks(text) + 1 == weight(value)
    for limit in (weight(value) - 1, weight(value)):
        # A text shorter than the limit is never looked into, so it is made longer.
        assert has_more_values(text + b" " * (limit + 1), limit) == (weight(value) > limit)


@pytest.mark.parametrize("unit", [b"[],", b'"a",', b'"a":0,', b"0,", b'["\\\\"],', b'"\\"",', b"{},"])
def test_counting_takes_no_memory_to_speak_of(unit: bytes) -> None:
    text = b"[" + unit * (2**20 // len(unit)) + b"0]"
    tracemalloc.start()
    try:
        assert has_more_values(text, 100_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * len(text)


def test_texts_do_not_count() -> None:
    assert not has_more_values(json.dumps(['[{"a": 1, "b": [2, 3]}], \\' * 10_000]).encode(), 3)


def test_a_large_batch_of_many_boxes_fits() -> None:
    boxes = [{"bbox_2d": [10, 20, 30, 40], "label": "dog"}] * 200
    items = [{"id": "1", "task": "detection", "response": "", "solution": boxes, "image_size": [1, 1]}] * 1024
    assert not has_more_values(json.dumps({"items": items}).encode(), Settings().max_json_values)


@pytest_asyncio.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(max_json_values=1000), TASKS, InProcessScoring(TASKS))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward") as client:
        yield client


def score_body(solution: Any, response: str = "3") -> dict[str, Any]:
    return {"items": [{"id": "1", "task": "counting", "response": response, "solution": solution}]}


PEERS = {
    "/v1/score": score_body,
    "/get_reward/counting": lambda solution: {"query": ["3"], "prompts": [""], "labels": [solution]},
    "/slime/counting": lambda solution: {"response": "3", "label": solution},
    "/verify/counting": lambda solution: {"responses_create_params": {}, "response": {}, "label": solution},
    "/seed_session": lambda solution: {"label": solution},
    "/aggregate_metrics": lambda solution: {"verify_responses": [solution]},
    "/judge": lambda solution: {"label": solution},
    "/submit_task/counting": lambda solution: {"response": "3", "reward_info": solution},
    "/verify_answer": lambda solution: {"prediction": "3", "gold": solution},
}


@pytest.mark.asyncio
@pytest.mark.parametrize("path", PEERS)
async def test_no_route_parses_a_body_of_too_many_values(http: httpx.AsyncClient, path: str) -> None:
    for many in ([[]] * 500, {str(number): 0 for number in range(500)}, ["a"] * 1000):
        refused = await http.post(path, json=PEERS[path](many))
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_values")
        assert refused.json()["error"]["message"].startswith("the body holds more than 1000 JSON values: ")
    fewer = await http.post(path, json=PEERS[path](["[]," * 1000] * 400))
    assert fewer.status_code != 413


@pytest.mark.asyncio
async def test_a_long_response_is_not_many_values(http: httpx.AsyncClient) -> None:
    scored = await http.post("/v1/score", json=score_body(3, '{"a": [1, 2], "b": "\\"[[["}' * 30 + "3"))
    assert scored.json()["results"][0]["outcome"] in ("ok", "invalid_output")
