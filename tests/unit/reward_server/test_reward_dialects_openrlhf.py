"""OpenRLHF's and lmm-r1's bodies, as their clients send them, and the response within a decoded text."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.dialects import labelled, openrlhf
from mmr1_reward_server.dialects.chat import extract_response
from mmr1_reward_server.rewards.presets.pr1 import PR1_COUNTING, PR1_GROUNDING
from tests.unit.reward_server.reward_peers import Scripted, peers, refusal

PROMPT = "<|im_start|>user\nHow many dogs?<|im_end|>\n<|im_start|>assistant\n"
SHOWN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n<|im_start|>assistant\n"


def logs(**values: list[float]) -> dict[str, list[float]]:
    number = len(next(iter(values.values()))) if values else 1
    return {name: values.get(name, [0.0] * number) for name in ("invalid_output", "verifier_error", "timeout")}


@pytest.mark.parametrize(
    ("path", "body", "reply"),
    [
        (
            "/get_reward",
            {"query": [f"{PROMPT}<answer>3</answer><|im_end|>"], "prompts": [PROMPT], "labels": ["3"]},
            {"rewards": [1.0], "scores": [1.0], "extra_logs": logs()},
        ),
        (  # the processor has expanded the pad, so the query does not start with the prompt
            "/get_reward",
            {
                "query": [SHOWN.replace("<|image_pad|>", 4 * "<|image_pad|>") + "<answer>3</answer><|im_end|>"],
                "prompts": [SHOWN],
                "labels": ["3"],
            },
            {"rewards": [1.0], "scores": [1.0], "extra_logs": logs()},
        ),
        (
            "/get_reward/ocr",
            {"query": [f"{PROMPT}<answer>STOP</answer>"], "prompts": [PROMPT], "labels": ["STOP!"]},
            {"rewards": [0.25], "scores": [0.25], "extra_logs": logs()},
        ),
        (
            "/get_reward",
            {
                "query": [f"{PROMPT}<answer>4</answer>", f"{PROMPT}STOP", f"{PROMPT}nothing"],
                "prompts": [PROMPT] * 3,
                "labels": [
                    {"task": "counting", "solution": 3, "params": {"score": "graded"}, "image_size": [640, 480]},
                    '{"task": "ocr", "text": "STOP"}',
                    3,
                ],
            },
            {
                "rewards": [pytest.approx(2 / 3), 1.0, 0.0],
                "scores": [pytest.approx(2 / 3), 1.0, 0.0],
                "extra_logs": logs(invalid_output=[0.0, 0.0, 1.0]),
            },
        ),
        (  # the floor is below 0, the score stays within 0 and 1
            "/get_reward/below_zero",
            {"query": [PROMPT], "prompts": [PROMPT], "labels": [""]},
            {"rewards": [-1.0], "scores": [0.0], "extra_logs": logs(invalid_output=[1.0])},
        ),
        (
            "/get_reward",
            {"query": [], "prompts": [], "labels": []},
            {"rewards": [], "scores": [], "extra_logs": {"invalid_output": [], "verifier_error": [], "timeout": []}},
        ),
        (  # the oldest clients send no labels, and what a task does not look at may be missing
            "/get_reward/format",
            {"query": [f"{PROMPT}<answer>3</answer>"]},
            {"rewards": [1.0], "scores": [1.0], "extra_logs": logs()},
        ),
    ],
)
async def test_bodies(path: str, body: dict[str, Any], reply: dict[str, Any]) -> None:
    async with peers(openrlhf) as http:
        answer = await http.post(path, json=body)
    assert (answer.status_code, answer.json()) == (200, reply)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("steps", "status", "reward", "logged", "num_calls"),
    [
        (["ok"], 200, 0.5, {}, 1),
        (["invalid_output"], 200, 0.0, {"invalid_output": [1.0]}, 1),
        (["verifier_error"], 200, 0.0, {"verifier_error": [1.0]}, 2),
        (["timeout"], 200, 0.0, {"timeout": [1.0]}, 2),
        (["timeout", "ok"], 200, 0.5, {}, 2),
        (["timeout", "overloaded"], 200, 0.0, {"timeout": [1.0]}, None),
        (["overloaded", "overloaded", "ok"], 200, 0.5, {}, 3),
        (["overloaded"], 503, None, {}, None),
    ],
)
async def test_outcomes_and_overload(
    monkeypatch: pytest.MonkeyPatch, steps: list[str], status: int, reward: Any, logged: Any, num_calls: int | None
) -> None:
    monkeypatch.setattr(openrlhf, "_HOLD_SECONDS", 0.2)
    scoring = Scripted(*steps)
    async with peers(openrlhf, scoring) as http:
        began = time.monotonic()
        answer = await http.post("/get_reward", json={"query": ["3"], "prompts": [""], "labels": ["3"]})
    assert answer.status_code == status
    assert time.monotonic() - began < 1
    if status == 200:
        assert answer.json() == {"rewards": [reward], "scores": [reward], "extra_logs": logs(**logged)}
    else:
        assert refusal(answer) == (503, "overloaded")
        assert time.monotonic() - began >= 0.2
    if num_calls is not None:
        assert len(scoring.calls) == num_calls


async def test_real_scorers_that_fail_and_hang() -> None:
    labels = [{"task": "hangs"}, {"task": "raises"}, {"task": "counting", "text": "3"}, {"task": "counting"}]
    async with peers(openrlhf) as http:
        answer = await http.post("/get_reward", json={"query": ["3"] * 4, "labels": labels})
    assert answer.status_code == 200
    assert answer.json()["rewards"] == [0.0, 0.0, 1.0, 0.0]
    assert answer.json()["extra_logs"] == logs(timeout=[1.0, 0.0, 0.0, 0.0], verifier_error=[0.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("/get_reward", b"", (422, "invalid_request")),
        ("/get_reward", b"{", (422, "invalid_request")),
        ("/get_reward", b"\xff", (422, "invalid_request")),
        ("/get_reward", b"[" * 5000, (422, "invalid_request")),
        ("/get_reward", b"{}", (422, "invalid_request")),
        ("/get_reward", b'{"query": "3"}', (422, "invalid_request")),
        ("/get_reward", b'{"query": ["3"], "prompts": [], "labels": ["3"]}', (422, "invalid_request")),
        ("/get_reward/countin", b'{"query": ["3"], "labels": ["3"]}', (404, "no_such_task")),
        ("/get_reward", b'{"query": ["3", "3", "3"], "labels": [1, 2, 3]}', (413, "too_many_items")),
    ],
)
async def test_refused_requests(path: str, content: bytes, expected: tuple[int, str]) -> None:
    async with peers(openrlhf, max_items=2) as http:
        assert refusal(await http.post(path, content=content)) == expected


WRONG_LABELS = [
    ({"task": "countin"}, "no task 'countin'; did you mean 'counting'?"),
    ({"task": "x" * 300}, "no task 'xxx"),
    ({"task": "ocr", "param": {}}, "label: unknown key 'param'"),
    ({"text": "", "solution": ""}, "label: it has both text and solution"),
    ({"text": "", "params": 3}, "label: params must be an object"),
    ({"text": "", "image_size": [0, 1]}, "label: image_size"),
]


@pytest.mark.parametrize(("label", "reason"), WRONG_LABELS)
async def test_a_wrong_label_costs_its_own_item_alone(
    label: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[tuple[str, str]] = []
    body = {"query": ["3", "3", "3"], "labels": ["3", label, {"task": "ocr", "text": "4"}]}
    async with peers(openrlhf, on_scored=lambda item, one: counted.append((item.task, one.outcome.value))) as http:
        answer = await http.post("/get_reward", json=body)
    assert answer.status_code == 200
    assert answer.json()["rewards"] == [1.0, 0.0, 0.25]
    assert answer.json()["extra_logs"] == logs(verifier_error=[0.0, 1.0, 0.0])
    told = [record.fields for record in caplog.records if record.name == labelled.__name__]
    assert [(one["labels"], one["of"], one["item"]) for one in told] == [(1, 3, "1")]
    assert told[0]["reason"].startswith(reason)
    # No label's word becomes a label of the metrics.
    named = "ocr" if label.get("task") == "ocr" else "counting"
    assert sorted(counted) == sorted([("counting", "ok"), (named, "verifier_error"), ("ocr", "ok")])


async def test_a_wrong_label_gets_the_floor_of_its_task() -> None:
    labels = [{"task": "below_zero", "text": "", "image_size": 3}, {"task": "below_zero", "param": 3}]
    async with peers(openrlhf) as http:
        by_label = await http.post("/get_reward", json={"query": ["3", "3"], "labels": labels})
        by_path = await http.post("/get_reward/below_zero", json={"query": ["3", "3"], "labels": labels})
    assert by_label.json()["rewards"] == [-1.0, -1.0]
    assert by_path.json()["rewards"] == [-1.0, -1.0]


async def test_a_wrong_task_is_answered_with_the_nearest() -> None:
    async with peers(openrlhf) as http:
        answer = await http.post("/get_reward/countin", json={"query": []})
    assert answer.json()["error"]["message"] == "no task 'countin'; did you mean 'counting'?"


@pytest.mark.parametrize(
    ("query", "prompt", "response"),
    [
        (PROMPT + "3<|im_end|>", PROMPT, "3"),
        (PROMPT + "3<|im_end|>\n<|endoftext|><|endoftext|>", PROMPT, "3"),
        (PROMPT + " 3 ", PROMPT, " 3 "),
        (PROMPT + "<|im_end|>", PROMPT, ""),
        ("", "", ""),
        ("3", "", "3"),
        (PROMPT + "3", "", "3"),
        (PROMPT[20:] + "3", PROMPT, "3"),  # a prompt cut at its front: only the marker helps
        (PROMPT + "3" + PROMPT + "4", PROMPT, "3" + PROMPT + "4"),
        (PROMPT + "3" + PROMPT + "4", "", "4"),
        (SHOWN.replace("<|image_pad|>", 400 * "<|image_pad|>") + "3", SHOWN, "3"),
        (SHOWN + "a <|image_pad|><|image_pad|> b", SHOWN, "a <|image_pad|><|image_pad|> b"),
        ("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n3<end_of_turn>\n", "", "3"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n3<|eot_id|>", "", "3"),
        ("User: Hi\nAssistant: 3</s>", "", "3"),
        ("<|im_start|>assistant\nAs it says, Assistant: 3", "", "As it says, Assistant: 3"),
        ("<|im_end|>3", "", "<|im_end|>3"),
    ],
)
def test_the_response_within_a_query(query: str, prompt: str, response: str) -> None:
    assert extract_response(query, prompt) == response
    kept = extract_response(query, prompt, keep_end=True)
    assert kept.startswith(response) and query.endswith(kept)


async def test_the_end_marks_reach_the_presets_that_ask_for_them() -> None:
    """Qwen's own tokens, decoded with the prompt and padded: the presets' own examples score as they do by /v1."""
    for task in (PR1_COUNTING, PR1_GROUNDING):
        assert task.example is not None
        item, result = task.example.item, task.example.result
        assert "<|im_end|>" in item.response
        label = {"task": task.name, "solution": item.solution, "params": item.params}
        for end in ("", "<|endoftext|>" * 3):
            asked = {"query": [PROMPT + item.response + end], "prompts": [PROMPT], "labels": [label]}
            async with peers(openrlhf) as http:
                answer = await http.post(f"/get_reward/{task.name}", json=asked)
                without_prompt = await http.post("/get_reward", json={**asked, "prompts": [""]})
            assert answer.json()["rewards"] == without_prompt.json()["rewards"] == [result.reward]


PIECES = ["<|im_start|>", "assistant\n", "<|image_pad|>", "<|im_end|>", "<image>", "3", " ", "\n", "Assistant: "]
TEXTS = st.lists(st.sampled_from(PIECES)).map("".join)


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_any_response_comes_back_from_behind_its_prompt(prompt: str, response: str) -> None:
    extracted = extract_response(f"{prompt}|{response}", f"{prompt}|")
    assert response.startswith(extracted)
    assert not response[len(extracted) :].replace("<|im_end|>", "").strip()


@pytest.mark.parametrize("piece", ["<|image_pad|>", "<|im_end|>", " ", "<", "<|im_start|>assistant\n", "\n<|im_end|>"])
def test_extraction_takes_linear_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    began = time.thread_time()  # what others do on this machine is not the question
    extract_response(text, "")
    extract_response(text, text[:-1])
    extract_response(text, "<|image_pad|>" + text)
    assert time.thread_time() - began < 2
