"""The peers' routes and `/v1/score` with bodies that are nearly theirs: mutations of what their clients send.

A request is answered with 200 or refused with 4xx, never with 500, and every answer is JSON. Scoring is real and in
process; accuracy, ocr and detection by equality, as in the dialects' own tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import httpx

from mmr1_reward_server.api import Item
from mmr1_reward_server.app import create_app
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.scoring import Scored, scored_item, too_deep
from mmr1_reward_server.settings import Settings
from tests.fuzz.drawing import Draw
from tests.fuzz.properties import MAX_SECONDS, TASKS, bounded
from tests.unit.reward_server.reward_peers import peer_tasks
from tests.unit.reward_server.test_reward_dialects_nemo_gym import GYM, message, row
from tests.unit.reward_server.test_reward_dialects_openrlhf import PROMPT
from tests.unit.reward_server.test_reward_dialects_pipelinerl import ASKED as PIPELINERL
from tests.unit.reward_server.test_reward_dialects_roll import ASKED as ROLL
from tests.unit.reward_server.test_reward_dialects_slime import MESSAGES
from tests.unit.reward_server.test_reward_dialects_vtriune import ASKED as VTRIUNE

_LABEL = {"task": "counting", "solution": 4, "params": {"score": "graded"}, "image_size": [640, 480]}
_ROUTES: tuple[tuple[str, Any], ...] = (
    (
        "/get_reward",
        {"query": [f"{PROMPT}<answer>3</answer>", "3"], "prompts": [PROMPT, PROMPT], "labels": ["3", _LABEL]},
    ),
    ("/slime", {"prompt": MESSAGES, "response": "<answer>3</answer>", "label": _LABEL}),
    ("/slime", [{"prompt": "", "response": "3", "label": "3"}]),
    ("/verify", row(message("<answer>3</answer>"), label="3", task="counting", **GYM)),
    ("/verify", row(message("3"), label=_LABEL)),
    ("/ng-rollout/0-0-a/verify", row(label="3", params={"score": "graded"}, image_size=[640, 480], **GYM)),
    ("/seed_session", {"resources_session_id": "s"}),
    ("/close_session", {"resources_session_id": "s"}),
    ("/aggregate_metrics", {"verify_responses": [{"reward": 1.0, **GYM}, {"reward": 0.0, "accuracy": 0.5, **GYM}]}),
    ("/judge", VTRIUNE),
    ("/submit_task", ROLL),
    ("/verify_answer", PIPELINERL),
    ("/verify_answer", {**PIPELINERL, "gold": _LABEL}),
    ("/v1/score", {"items": [{"id": "1", "response": "3", **_LABEL}]}),
)
_TASKED = frozenset(("/get_reward", "/slime", "/verify", "/judge", "/submit_task", "/verify_answer"))
_LABELS = frozenset(("label", "labels", "gold", "answer"))
_RESPONSES = frozenset(("response", "prediction"))
_EXAMPLES = tuple(task.example.item.model_dump(mode="json") for task in TASKS if task.example is not None)
_QUERIES = ("", "", "", "?detail=1", "?detail=", "?a=%ff")


class _AtOnce:
    """A `Scoring` without threads, deadlines or limits."""

    num_pending = 0
    num_alive = 1
    unready: str | None = None

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def score(self, items: Sequence[Item]) -> list[Scored]:
        return [too_deep(item) or scored_item(self._registry, item, max_response_chars=100_000) for item in items]


@cache
def _client() -> tuple[httpx.AsyncClient, asyncio.AbstractEventLoop, tuple[str, ...]]:
    registry = Registry(task for task in peer_tasks() if task.name not in ("hangs", "raises"))
    app = create_app(Settings(default_task="counting", access_log=False), registry, _AtOnce(registry))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward")
    return http, asyncio.new_event_loop(), tuple(task.name for task in registry)


def peers(draw: Draw) -> None:
    """One request to one of the routes."""
    http, loop, names = _client()
    path, valid = draw.one_of(_ROUTES)
    if path in _TASKED and draw.chance(3):
        path = f"{path}/{draw.one_of((*names, 'no_such_task'))}"
    path = draw.note("path", path + draw.one_of(_QUERIES))
    content = draw.note("body", _encoded(draw, _about_a_task(draw, draw.mutated(valid))))
    with bounded(path, 4 * MAX_SECONDS):
        answer = loop.run_until_complete(_ask(http, path, content))
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, f"{answer.status_code}: {answer.text[:500]}"
    told = json.loads(answer.content)
    if answer.status_code != 200:
        assert told["error"]["message"] and "\n" not in told["error"]["message"]
    elif path.startswith("/submit_task"):
        result = loop.run_until_complete(_ask(http, "/task_result", _encoded(draw, told), "GET"))
        assert result.status_code < 500, result.text[:500]


def _about_a_task(draw: Draw, body: Any) -> Any:
    """The body with labels of a real task in it, so that what is written reaches its scorer. It may be changed."""
    for one in body if isinstance(body, list) else [body]:
        if not isinstance(one, dict) or draw.chance(2):
            continue
        for key in sorted(_LABELS & one.keys()):
            one[key] = [_label(draw) for _ in one[key]] if isinstance(one[key], list) else _label(draw)
        for key in sorted(_RESPONSES & one.keys()):
            if isinstance(one[key], str):
                one[key] = draw.text(3000)
    return body


def _label(draw: Draw) -> Any:
    item = draw.one_of(_EXAMPLES)
    label = draw.mutated({name: item[name] for name in ("task", "solution", "params", "image_size")})
    return json.dumps(label) if draw.chance(3) else label


def _encoded(draw: Draw, body: Any) -> bytes:
    content = json.dumps(body, ensure_ascii=draw.chance(2)).encode("utf-8", "surrogatepass")
    if draw.chance(4):
        begin = draw.below(len(content) + 1)
        inserted = draw.one_of((b"", b"\\ud800", b"1e999", b"[" * 300, b"NaN", b"\xff", b"\x00", b'"', draw.raw(20)))
        content = content[:begin] + inserted + content[begin + draw.below(9) :]
    return content


async def _ask(http: httpx.AsyncClient, path: str, content: bytes, method: str = "POST") -> httpx.Response:
    return await http.request(method, path, content=content, headers={"content-type": "application/json"})
