"""PipelineRL's bodies, as its client sends them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mmr1_reward_server.app import create_app
from mmr1_reward_server.dialects import pipelinerl
from mmr1_reward_server.settings import SettingsError, parse_settings
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_peers import Scripted, peer_tasks, peers, refusal

ASKED = {"prediction": "<answer>3</answer>", "gold": "3", "strict": True, "max_prediction_length": 1000}


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    [
        ("/verify_answer", {}, "correct"),
        ("/verify_answer", {"gold": "4"}, "wrong"),
        ("/verify_answer", {"prediction": "no idea"}, "no_answer"),
        ("/verify_answer", {"prediction": ""}, "no_answer"),
        ("/verify_answer/ocr", {"prediction": "STOP", "gold": "STOP"}, "correct"),
        ("/verify_answer", {"prediction": "STOP", "gold": {"task": "ocr", "text": "STOP!"}}, "wrong"),
        ("/verify_answer", {"gold": {"task": "counting", "solution": 4, "params": {"score": "graded"}}}, "correct"),
        ("/verify_answer/raises", {}, "unparsable"),
        ("/verify_answer/hangs", {}, "unparsable"),
        ("/verify_answer", {"gold": "a few"}, "unparsable"),
    ],
)
async def test_bodies(path: str, changes: dict[str, Any], status: str) -> None:
    async with peers(pipelinerl) as http:
        answer = await http.post(path, json=ASKED | changes)
    assert (answer.status_code, answer.json()) == (200, {"answer_status": status})


async def test_correct_begins_at_a_threshold() -> None:
    async with peers(pipelinerl, correct_from=0.8) as http:
        gold = {"task": "counting", "solution": 4, "params": {"score": "graded"}}
        answer = await http.post("/verify_answer", json=ASKED | {"gold": gold})
    assert answer.json() == {"answer_status": "wrong"}


@pytest.mark.parametrize(
    ("correct_from", "status"),
    [
        (0.75, "correct"),
        (0.76, "wrong"),
        (-1, "correct"),
        (10**4200, "wrong"),
        (-(10**4200), "correct"),
        (0, "correct"),
    ],
    ids=["reached", "missed", "below all", "far above", "far below", "zero"],
)
async def test_a_label_may_have_a_threshold_of_its_own(correct_from: float, status: str) -> None:
    params = {"score": "graded", "correct_from": correct_from}
    gold = {"task": "counting", "solution": 4, "params": params}
    async with peers(pipelinerl, correct_from=0.99) as http:
        for form in (gold, json.dumps(gold)):
            answer = await http.post("/verify_answer", json=ASKED | {"gold": form})
            assert answer.json() == {"answer_status": status}


async def test_the_servers_option_is_the_threshold() -> None:
    tasks = peer_tasks()
    gold = {"task": "counting", "solution": 4, "params": {"score": "graded"}}
    for argv, status in ([], "correct"), (["--correct-from", "0.8"], "wrong"):
        app = create_app(parse_settings(argv), tasks, InProcessScoring(tasks))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward") as http:
            answer = await http.post("/verify_answer", json=ASKED | {"gold": gold})
        assert answer.json() == {"answer_status": status}
    with pytest.raises(SettingsError, match="--correct-from"):
        parse_settings(["--correct-from", "nan"])


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["ok"], "correct"),
        (["invalid_output"], "no_answer"),
        (["verifier_error"], "unparsable"),
        (["timeout"], "unparsable"),
        (["timeout", "ok"], "correct"),
        (["overloaded", "ok"], "correct"),
        (["overloaded"], 503),
    ],
)
async def test_outcomes_and_overload(monkeypatch: pytest.MonkeyPatch, steps: list[str], expected: str | int) -> None:
    monkeypatch.setattr(pipelinerl, "_HOLD_SECONDS", 0.1)
    async with peers(pipelinerl, Scripted(*steps)) as http:
        answer = await http.post("/verify_answer", json=ASKED)
    if isinstance(expected, int):
        assert refusal(answer) == (expected, "overloaded")
    else:
        assert (answer.status_code, answer.json()) == (200, {"answer_status": expected})


async def test_health_and_other_forms() -> None:
    async with peers(pipelinerl) as http:
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert refusal(await http.post("/verify_answer", json={"prediction": "3"})) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ({"task": "ocr", "text": "3", "params": {"correct_from": "high"}}, "correct_from must be a number"),
        ({"task": "ocr", "text": "3", "params": {"correct_from": True}}, "correct_from must be a number"),
        ({"task": "countin"}, "did you mean 'counting'"),
        ({"task": "ocr", "param": 3}, "unknown key 'param'"),
        ({"task": "ocr", "text": "3", "image_size": [0, 1]}, "image_size"),
        ("a few", "solution for task counting"),
    ],
)
async def test_a_wrong_label_is_unparsable_since_a_refusal_would_end_the_run(
    caplog: pytest.LogCaptureFixture, gold: Any, reason: str
) -> None:
    seen: list[str] = []
    async with peers(pipelinerl, on_scored=lambda _, scored: seen.append(scored.outcome.value)) as http:
        answer = await http.post("/verify_answer", json=ASKED | {"gold": gold})
        assert (answer.status_code, answer.json()) == (200, {"answer_status": "unparsable"})
        assert refusal(await http.post("/verify_answer/countin", json=ASKED)) == (404, "no_such_task")
    assert seen == ["verifier_error"]
    assert [reason in str(record.__dict__["fields"]) for record in caplog.records] == [True]
