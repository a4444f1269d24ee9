"""slime's and miles' bodies, as their clients send them."""

from __future__ import annotations

from typing import Any

import pytest

from mmr1_reward_server.dialects import slime
from tests.unit.reward_server.reward_peers import Scripted, peers, refusal

FLAGS = {"invalid_output": 0.0, "verifier_error": 0.0, "timeout": 0.0}
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}]


@pytest.mark.parametrize(
    ("path", "body", "reply"),
    [
        ("/slime", {"prompt": "<|im_start|>user\n...", "response": "<answer>3</answer>", "label": "3"}, b"1.0"),
        ("/slime", {"prompt": MESSAGES, "response": "<answer>3</answer>", "label": 4}, b"0.0"),
        ("/slime/ocr", {"prompt": "", "response": "STO", "label": "STOP"}, b"0.25"),
        ("/slime", {"prompt": "", "response": "STO", "label": {"task": "ocr", "text": "STOP"}}, b"0.25"),
        ("/slime/below_zero", {"prompt": "", "response": "", "label": "STOP"}, b"-1.0"),
        ("/slime/format", {"prompt": "", "response": "<answer>3</answer>", "label": None}, b"1.0"),
        ("/slime", {"prompt": "", "response": "no idea", "label": "3"}, b"0.0"),
    ],
)
async def test_bodies(path: str, body: dict[str, Any], reply: bytes) -> None:
    async with peers(slime) as http:
        answer = await http.post(path, json=body)
    assert (answer.status_code, answer.content) == (200, reply)
    assert answer.headers["content-type"] == "application/json"  # the client's aiohttp reads no other


async def test_detail() -> None:
    async with peers(slime) as http:
        body = {"prompt": "", "response": "<answer>4</answer>", "label": 3}
        answer = await http.post("/slime?detail=1", json=body)
        nothing = await http.post("/slime/counting?detail=1", json={**body, "response": "?"})
    components = {"exact": 0.0, "graded": pytest.approx(2 / 3)}
    assert answer.json() == {**FLAGS, **components, "score": 0.0}
    assert nothing.json() == {**FLAGS, "invalid_output": 1.0, "score": 0.0}


@pytest.mark.parametrize(
    ("steps", "status", "reply"),
    [
        (["ok"], 200, {**FLAGS, "part": 0.5, "score": 0.5}),
        (["invalid_output"], 200, {**FLAGS, "invalid_output": 1.0, "score": 0.0}),
        (["verifier_error"], 200, {**FLAGS, "verifier_error": 1.0, "score": 0.0}),
        (["timeout"], 200, {**FLAGS, "timeout": 1.0, "score": 0.0}),
        (["verifier_error", "ok"], 200, {**FLAGS, "part": 0.5, "score": 0.5}),
        (["overloaded", "ok"], 200, {**FLAGS, "part": 0.5, "score": 0.5}),
        (["overloaded"], 503, None),
    ],
)
async def test_outcomes_and_overload(
    monkeypatch: pytest.MonkeyPatch, steps: list[str], status: int, reply: dict[str, float] | None
) -> None:
    monkeypatch.setattr(slime, "_HOLD_SECONDS", 0.1)
    body = {"prompt": "", "response": "3", "label": "3"}
    async with peers(slime, Scripted(*steps)) as http:
        answer = await http.post("/slime?detail=1", json=body)
    assert answer.status_code == status
    if reply is None:
        assert refusal(answer) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
    else:
        assert answer.json() == reply
    async with peers(slime, Scripted(*steps)) as http:
        bare = await http.post("/slime", json=body)
    assert reply is None or bare.json() == reply["score"]


@pytest.mark.parametrize("body", [{}, {"prompt": "", "label": ""}, {"response": None}, {"response": 3}, [], "3"])
async def test_other_forms_are_refused(body: Any) -> None:
    async with peers(slime) as http:
        assert refusal(await http.post("/slime", json=body)) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("path", "label", "floor"),
    [
        ("/slime", {"task": "countin"}, 0.0),
        ("/slime", {"task": "below_zero", "image_size": [0, 1]}, -1.0),
        ("/slime/below_zero", {"text": "", "params": 3}, -1.0),
        ("/slime/below_zero", {"task": "ocr", "param": 3}, -1.0),
        ("/slime", {"task": "below_zero", "param": 3}, -1.0),
    ],
)
async def test_a_wrong_label_is_the_floor_since_a_refusal_would_end_the_run(
    path: str, label: Any, floor: float
) -> None:
    body = {"prompt": "", "response": "3", "label": label}
    async with peers(slime) as http:
        bare = await http.post(path, json=body)
        detailed = await http.post(f"{path}?detail=1", json=body)
    assert (bare.status_code, bare.json()) == (200, floor)
    assert detailed.json() == {**FLAGS, "verifier_error": 1.0, "score": floor}


async def test_a_wrong_task_in_the_path_is_refused() -> None:
    async with peers(slime) as http:
        assert refusal(await http.post("/slime/countin", json={"response": "3"})) == (404, "no_such_task")
