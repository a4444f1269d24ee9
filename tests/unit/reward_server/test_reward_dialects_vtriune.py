"""V-Triune's bodies, as its client sends them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmr1_reward_server.dialects import vtriune
from mmr1_reward_server.registry import Registry
from tests.unit.reward_server.reward_peers import Scripted, peer_tasks, peers, refusal

PARAMETERS = {
    "det_verifier_normalized": True,
    "is_training": True,
    "step": 1,
    "total_steps": 100,
    "image_grid_thw": None,
    "image_path": ["/etc/passwd"],
}
ASKED: dict[str, Any] = {
    "response": "<think>hm</think><answer>3</answer>",
    "answer": "3",
    "prompt": "How many dogs?",
    "solution": "<answer>3</answer>",
    "data_source": "count",
    "reward_verifier": "mathverify",
    "reward_verifier_parm": json.dumps(PARAMETERS),
    "format_ratio": 0.1,
    "accuracy_ratio": 1.0,
}


def rewards(accuracy: float, layout: float, final: float) -> dict[str, Any]:
    return {
        "format_reward": layout,
        "accuracy_reward": accuracy,
        "reflection_reward": 0.0,
        "final_reward": pytest.approx(final, abs=1e-12),
    }


@pytest.mark.parametrize(
    ("changes", "reply"),
    [
        ({}, rewards(1.0, 1.0, 1.0)),
        ({"response": "<answer>3</answer>"}, rewards(1.0, 0.0, 1 / 1.1)),
        ({"response": "<think>hm</think><answer>4</answer>"}, rewards(0.0, 1.0, 0.1 / 1.1)),
        ({"response": "no idea"}, rewards(0.0, 0.0, 0.0)),
        ({"data_source": "coco2017", "reward_verifier": "detection", "answer": "4"}, rewards(0.25, 1.0, 0.35 / 1.1)),
        ({"data_source": "geometry3k", "answer": "4"}, rewards(0.25, 1.0, 0.35 / 1.1)),
        ({"data_source": "ocr", "answer": "3"}, rewards(1.0, 1.0, 1.0)),
        ({"data_source": None, "reward_verifier": None}, rewards(1.0, 1.0, 1.0)),
        ({"answer": {"task": "ocr", "text": "4"}, "format_ratio": 1.0}, rewards(0.25, 1.0, 0.625)),
        ({"format_ratio": 0.0, "response": "<answer>3</answer>"}, rewards(1.0, 0.0, 1.0)),
        ({"accuracy_ratio": 0.0, "answer": "4"}, rewards(0.0, 1.0, 1.0)),
    ],
)
async def test_bodies(changes: dict[str, Any], reply: dict[str, Any]) -> None:
    async with peers(vtriune) as http:
        answer = await http.post("/judge", json=ASKED | changes)
    assert (answer.status_code, answer.json()) == (200, {"rewards": reply})


@pytest.mark.parametrize(
    ("source", "verifier", "task"),
    [
        ("count", "mathverify", "counting"),
        ("counting", "mathverify", "counting"),
        ("ocr", "mathverify", "ocr"),
        ("coco2017", "detection", "detection"),
        ("mm_math", "mathverify", "accuracy"),
        ("mm_math", "below_zero", "below_zero"),
        ("mm_math", "unknown", "counting"),
    ],
)
async def test_the_task(source: str, verifier: str, task: str) -> None:
    scoring = Scripted("ok")
    async with peers(vtriune, scoring) as http:
        await http.post("/judge", json=ASKED | {"data_source": source, "reward_verifier": verifier})
        await http.post("/judge/ocr", json=ASKED | {"data_source": source, "reward_verifier": verifier})
    assert [[item.task for item in items] for items in scoring.calls] == [[task, "format"], ["ocr", "format"]]
    assert scoring.calls[0][1].params == {"style": "think_answer"}


BOX = {"bbox_2d": [3, 219, 998, 987], "label": "truck"}


@pytest.mark.parametrize(
    ("answer", "solution"),
    [
        ("[{'bbox_2d': [3, 219, 998, 987], 'label': 'truck'}]", [BOX]),
        ('[{"bbox_2d": [3, 219, 998, 987], "label": "truck"}]', [BOX]),
        ("[]", []),
        ("[{'label': 'driver's cab'}]", "[{'label': 'driver's cab'}]"),  # no guess at what is broken
        ("[1, 2]", "[1, 2]"),
        ([BOX], [BOX]),
    ],
)
async def test_boxes_that_are_a_text(answer: Any, solution: Any) -> None:
    scoring = Scripted("ok")
    async with peers(vtriune, scoring) as http:
        await http.post("/judge/detection", json=ASKED | {"answer": answer})
    assert scoring.calls[0][0].solution == solution


async def test_a_server_without_the_format_task_gives_it_nothing() -> None:
    tasks = Registry([task for task in peer_tasks() if task.name != "format"])
    async with peers(vtriune, registry=tasks) as http:
        answer = await http.post("/judge", json=ASKED)
    assert answer.json() == {"rewards": rewards(1.0, 0.0, 1 / 1.1)}


async def test_ratios_have_the_peers_defaults() -> None:
    async with peers(vtriune) as http:
        asked = {key: value for key, value in ASKED.items() if not key.endswith("_ratio")}
        answer = await http.post("/judge", json=asked | {"answer": "4"})
    assert answer.json() == {"rewards": rewards(0.0, 1.0, 0.1 / 1.1)}


@pytest.mark.parametrize(
    ("steps", "status", "num_calls"),
    [
        (["ok"], 200, 1),
        (["invalid_output"], 200, 1),
        (["verifier_error", "ok"], 500, 1),  # the client itself tries again
        (["timeout", "ok"], 500, 1),
        (["overloaded", "ok"], 200, 2),
        (["overloaded"], 503, None),
    ],
)
async def test_outcomes_and_overload(
    monkeypatch: pytest.MonkeyPatch, steps: list[str], status: int, num_calls: int | None
) -> None:
    monkeypatch.setattr(vtriune, "_HOLD_SECONDS", 0.1)
    scoring = Scripted(*steps)
    async with peers(vtriune, scoring) as http:
        answer = await http.post("/judge", json=ASKED)
    assert answer.status_code == status
    assert num_calls is None or len(scoring.calls) == num_calls
    if status == 200:
        value = 0.5 if steps[-1] == "ok" else 0.0
        assert answer.json() == {"rewards": rewards(value, value, value)}
    else:
        assert refusal(answer)[1] == {500: steps[0], 503: "overloaded"}[status]


async def test_the_greeting_that_the_client_looks_for() -> None:
    async with peers(vtriune) as http:
        answer = await http.get("/")
    assert (answer.status_code, answer.json()) == (200, {"message": "Reward Judge Server"})


@pytest.mark.parametrize(
    "changes",
    [{"format_ratio": 0, "accuracy_ratio": 0}, {"format_ratio": -1}, {"accuracy_ratio": 1e300}, {"response": None}],
)
async def test_other_forms_are_refused(changes: dict[str, Any]) -> None:
    async with peers(vtriune) as http:
        assert refusal(await http.post("/judge", json=ASKED | changes)) == (422, "invalid_request")


@pytest.mark.parametrize("label", [{"task": "countin"}, {"task": "ocr", "param": 3}, "a few"])
async def test_a_wrong_label_is_a_failed_verdict(caplog: pytest.LogCaptureFixture, label: Any) -> None:
    """The client takes whatever fails for 0, and prints no more of it than its status: the log says why."""
    seen: list[str] = []
    async with peers(vtriune, on_scored=lambda _, one: seen.append(one.outcome.value)) as http:
        answer = await http.post("/judge", json=ASKED | {"answer": label})
    assert refusal(answer) == (422, "verifier_error")
    assert seen[0] == "verifier_error"
    assert [record.message for record in caplog.records] == [
        "labels are wrong: their items have no reward of their own"
    ]
