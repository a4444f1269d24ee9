"""NeMo-Gym's and verifiers' bodies, as their clients send them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmr1_reward_server.dialects import nemo_gym
from tests.unit.reward_server.reward_peers import Scripted, peers, refusal

IMAGE = {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,iVBORw0KGgo="}


def message(text: str, role: str = "assistant") -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"id": "msg_0", "type": "message", "role": role, "status": "completed", "content": content}


def row(*output: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A row as verifiers sends it."""
    asked = {"role": "user", "type": "message", "content": [IMAGE, {"type": "input_text", "text": "How many dogs?"}]}
    return {
        "responses_create_params": {"input": [asked], "tools": [], "tool_choice": "auto", "temperature": None},
        "response": {
            "id": "resp_0",
            "created_at": 1.0,
            "model": "m",
            "object": "response",
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "output": list(output) or [message("<answer>3</answer>")],
        },
        **fields,
    }


# What NeMo-Gym's agent adds to each row.
GYM = {"_ng_task_index": 0, "_ng_rollout_index": 0, "agent_ref": {"name": "simple_agent"}}


@pytest.mark.parametrize(
    ("path", "asked", "reward"),
    [
        ("/verify", row(label="3", task="counting", **GYM), 1.0),
        ("/verify", row(label="3"), 1.0),
        ("/verify", row(label="4"), 0.0),
        ("/verify/ocr", row(label="4"), 0.25),
        ("/ng-rollout/0-0-a/verify", row(label="3", **GYM), 1.0),
        ("/ng-rollout/0-0-a/verify/ocr", row(label="4", **GYM), 0.25),
        ("/verify", row(label=4, task="counting", params={"score": "graded"}, image_size=[640, 480]), 0.75),
        ("/verify", row(label={"task": "counting", "solution": 4, "params": {"score": "graded"}}), 0.75),
        ("/verify", row(ground_truth="3"), 1.0),
        ("/verify", row(expected_answer=3, verifier_metadata={"source": "a"}), 1.0),
        ("/verify", row(label=None, answer="3"), 1.0),
        (
            "/verify",
            row(label={"solution": [0, 0, 9, 9], "image_size": [9, 9]}, image_size=None, task="grounding"),
            0.0,
        ),
        ("/verify", row(message("no idea"), label="3"), 0.0),
        ("/verify", row({"type": "function_call", "name": "look", "arguments": "{}", "call_id": "1"}, label="3"), 0.0),
        (
            "/verify",
            row({"type": "reasoning", "summary": [{"type": "summary_text", "text": "4"}]}, message("3"), label="3"),
            1.0,
        ),
        ("/verify", row(message("<answer>"), message("3</answer>"), label="3"), 1.0),
        ("/verify", row(message("4", role="user"), label="3", task="below_zero"), -1.0),
        ("/verify", row(label="3", reward=0.0, accuracy=0.5), 1.0),
    ],
)
async def test_bodies(path: str, asked: dict[str, Any], reward: float) -> None:
    async with peers(nemo_gym) as http:
        answer = await http.post(path, json=asked)
    assert (answer.status_code, answer.json()) == (200, {**asked, "reward": reward})


async def test_all_that_is_in_a_row_comes_back_as_it_came() -> None:
    asked = row(label="3", big=2**80, small=1e-300, text="ü😀\x00", nested=[[[{}]]], none=None)
    asked["responses_create_params"]["input"][0]["content"][0]["image_url"] += "A" * 3_000_000
    async with peers(nemo_gym) as http:
        answer = await http.post("/verify", json=asked)
        content = json.dumps(row(label="3", logprobs=[float("-inf")])).encode()
        infinite = await http.post("/verify", content=content)
    assert answer.json() == {**asked, "reward": 1.0}
    assert json.loads(infinite.content)["logprobs"] == [float("-inf")]


async def test_metadata_is_no_label_where_there_is_one() -> None:
    scoring = Scripted("ok")
    async with peers(nemo_gym, scoring) as http:
        await http.post("/verify", json=row(label=None, verifier_metadata="3"))
        await http.post("/verify", json=row(verifier_metadata="3"))
    assert [items[0].solution for items in scoring.calls] == [None, "3"]


MASKED = {"reward": 0.0, "mask_sample": True, "instance_config": {"mask_sample": True}}


@pytest.mark.parametrize(
    ("steps", "gym", "verifiers"),
    [
        (["ok"], {"reward": 0.5}, 200),
        (["invalid_output"], {"reward": 0.0}, 200),
        (["verifier_error"], {**MASKED, "failure_kind": "verifier_error", "failure_reason": "why"}, 500),
        (["timeout"], {**MASKED, "failure_kind": "mmr1:scorer_timeout", "failure_reason": "why"}, 500),
        (["timeout", "ok"], {"reward": 0.5}, 200),
        (["overloaded", "ok"], {"reward": 0.5}, 200),
        (["overloaded"], {**MASKED, "failure_kind": "provider_unavailable"}, 503),
    ],
)
async def test_outcomes_and_overload(
    monkeypatch: pytest.MonkeyPatch, steps: list[str], gym: dict[str, Any], verifiers: int
) -> None:
    monkeypatch.setattr(nemo_gym, "_GYM_HOLD_SECONDS", 0.1)
    monkeypatch.setattr(nemo_gym, "_VERIFIERS_HOLD_SECONDS", 0.1)
    asked = row(label="3", **GYM)
    async with peers(nemo_gym, Scripted(*steps)) as http:
        answer = await http.post("/verify", json=asked)
    assert answer.status_code == 200
    if "failure_kind" in gym:
        gym = {"failure_reason": answer.json()["failure_reason"], **gym}
    assert answer.json() == {**asked, **gym}
    async with peers(nemo_gym, Scripted(*steps)) as http:
        answer = await http.post("/verify", json=row(label="3"))
    assert answer.status_code == verifiers
    assert verifiers == 200 or refusal(answer)[1] in ("verifier_error", "timeout", "overloaded")


async def test_an_earlier_failure_does_not_stay_in_the_row() -> None:
    earlier: dict[str, Any] = {"reward": 0.0, "mask_sample": True, "reward_components": {"iou": 0.25}}
    earlier |= {"failure_kind": "judge_failed", "failure_reason": "gone"}
    async with peers(nemo_gym) as http:
        answer = await http.post("/verify", json=row(label="3", **earlier))
    assert answer.json() == row(label="3", reward=1.0)


@pytest.mark.parametrize("config", [{}, {"instance_config": {"seed": 3}}])
async def test_a_row_that_we_masked_is_unmasked_by_a_verdict(config: dict[str, Any]) -> None:
    asked = row(label="3", **GYM, **config)
    async with peers(nemo_gym, Scripted("verifier_error")) as http:
        masked = (await http.post("/verify", json=asked)).json()
    assert masked["mask_sample"] and masked["instance_config"]["mask_sample"]
    async with peers(nemo_gym) as http:
        answer = await http.post("/verify", json=masked)
    assert answer.json() == {**asked, "reward": 1.0}


async def test_sessions_keep_nothing() -> None:
    session = {"resources_session_id": "s", "episode_id": "e", "task_id": "t", "task_data": {}}
    async with peers(nemo_gym) as http:
        for prefix in ("", "/ng-rollout/0-0-a"):
            assert (await http.post(f"{prefix}/seed_session", json=row(label="3"))).json() == {}
            assert (await http.post(f"{prefix}/seed_session", json=session)).json() == {"resources_session_id": "s"}
            assert (await http.post(f"{prefix}/close_session", json=session)).json() == {"resources_session_id": "s"}
            assert (await http.get(f"{prefix}/reverify_mode")).json() == "stateless"


async def test_metrics_leave_masked_samples_out() -> None:
    responses = [
        {"_ng_task_index": 0, "_ng_rollout_index": 0, "reward": 1.0, "iou": 0.5, "name": "a"},
        {"_ng_task_index": 0, "_ng_rollout_index": 1, "reward": 0.0, "iou": float("nan")},
        {"_ng_task_index": 1, "_ng_rollout_index": 0, "reward": 0.5, "mask_sample": False},
        {"_ng_task_index": 1, "_ng_rollout_index": 1, "reward": 0.0, "mask_sample": True},
    ]
    async with peers(nemo_gym) as http:
        content = json.dumps({"verify_responses": responses}).encode()
        answer = await http.post("/aggregate_metrics", content=content)
        nothing = await http.post("/aggregate_metrics", json={"verify_responses": []})
    means = {"mean/reward": 0.5, "mean/iou": 0.5}
    assert answer.json() == {
        "group_level_metrics": [
            {"_ng_task_index": 0, "mean/reward": 0.5, "mean/iou": 0.5},
            {"_ng_task_index": 1, "mean/reward": 0.5},
        ],
        "agent_metrics": {**means, "coverage/measured": 0.75},
        "key_metrics": means,
    }
    assert nothing.json() == {"group_level_metrics": [], "agent_metrics": {}, "key_metrics": {}}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/verify", [], "invalid_request"),
        ("/verify", {}, "invalid_request"),
        ("/verify", {"responses_create_params": {}}, "invalid_request"),
        ("/verify", {"responses_create_params": {}, "response": {}}, "invalid_request"),
        ("/verify", {"responses_create_params": {}, "response": {"output": [3]}}, "invalid_request"),
        ("/verify", {"responses_create_params": {}, "response": {"output": [{"type": 3}]}}, "invalid_request"),
        ("/seed_session", [], "invalid_request"),
        ("/aggregate_metrics", {"verify_responses": [3]}, "invalid_request"),
    ],
)
async def test_other_forms_are_refused(path: str, body: Any, code: str) -> None:
    async with peers(nemo_gym) as http:
        assert refusal(await http.post(path, json=body)) == (422, code)


@pytest.mark.parametrize(
    ("path", "fields", "floor", "reason"),
    [
        ("/verify", {"label": "3", "task": "countin"}, 0.0, "did you mean 'counting'"),
        ("/verify", {"label": "3", "task": "below_zero", "image_size": "large"}, -1.0, "image_size"),
        ("/verify", {"label": {"task": "below_zero", "param": 3}}, -1.0, "unknown key 'param'"),
        ("/verify/below_zero", {"label": {"text": "", "params": 3}}, -1.0, "params must be an object"),
    ],
)
async def test_a_wrong_label_is_masked_since_a_refusal_would_end_the_run(
    caplog: pytest.LogCaptureFixture, path: str, fields: dict[str, Any], floor: float, reason: str
) -> None:
    asked = row(**fields, **GYM)
    seen: list[tuple[str, str]] = []
    scoring = Scripted("ok")
    async with peers(
        nemo_gym, scoring, on_scored=lambda item, one: seen.append((item.task, one.outcome.value))
    ) as http:
        answer = await http.post(path, json=asked)
        refused = await http.post(path, json=row(**fields))  # verifiers drops a rollout whose request was refused
    assert answer.status_code == 200
    said = answer.json()["failure_reason"]
    assert reason in said
    assert answer.json() == {
        **asked,
        **MASKED,
        "reward": floor,
        "failure_kind": "verifier_error",
        "failure_reason": said,
    }
    assert refusal(refused) == (422, "verifier_error")
    assert reason in refused.text
    assert [outcome for _, outcome in seen] == ["verifier_error"] * 2
    assert scoring.calls == []
    assert reason in str(caplog.records[-1].__dict__["fields"])
