"""V-Triune: `POST /judge`, four rewards out; `GET /` names the server as its client expects.

The client turns whatever fails into 0 and has no other word for it: a failed verdict, a wrong label's too, is an HTTP
error, which it tries three times and prints. `image_path` and the other parameters of its own verifiers are not looked
at.
"""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from pydantic_core import from_json

from ..api import Item, Result
from ..errors import RequestError
from ..registry import Registry
from ..scoring import Scoring
from .defaults import Defaults
from .exchange import Call, Endpoints, answer, not_scored
from .holding import Holding
from .labelled import Labelled, read_labelled, score_labelled

_HOLD_SECONDS = 20.0  # the client gives each of its three tries 30 s
_VERIFIERS = {"mathverify": "accuracy"}
_SOURCES = {"count": "counting", "counting": "counting", "ocr": "ocr"}


class JudgeRequest(BaseModel):
    response: str
    answer: Any = Field(description="the truth: any JSON value, see `labels.py`")
    prompt: Any = Field(None, description="not looked at")
    solution: Any = Field(None, description="the answer within its tags; not looked at")
    data_source: str | None = Field(None, description="count, counting and ocr name a task")
    reward_verifier: str | None = Field(None, description="mathverify (accuracy), detection, or any task's name")
    reward_verifier_parm: Any = Field(None, description="of the peer's own verifiers; not looked at")
    format_ratio: float = Field(0.1, strict=True, ge=0, le=1e6)
    accuracy_ratio: float = Field(1.0, strict=True, ge=0, le=1e6)


class Rewards(BaseModel):
    format_reward: float
    accuracy_reward: float
    reflection_reward: float = Field(description="always 0")
    final_reward: float


class JudgeAnswer(BaseModel):
    rewards: Rewards


class Greeting(BaseModel):
    message: str


def router(scoring: Scoring, registry: Registry, defaults: Defaults) -> APIRouter:
    routes = APIRouter(tags=["peers"])
    holding = Holding(scoring, defaults)

    async def judge(call: Call) -> Response:
        """V-Triune: accuracy·a/(a+f) + format·f/(a+f), with the two ratios; the format is think, then answer."""
        asked = call.read(JudgeRequest)
        if asked.accuracy_ratio + asked.format_ratio == 0:
            raise RequestError(422, "invalid_request", "accuracy_ratio and format_ratio are both 0")
        labelled = _read(asked, registry, call.task, defaults.default_task)
        scored = await score_labelled(
            holding, defaults, labelled, num_bytes=len(call.body), hold_seconds=_HOLD_SECONDS, gone=call.gone, tries=1
        )
        if failed := next((one for one in scored if one.reward is None), None):
            raise not_scored(failed)
        return answer({"rewards": weigh([one.result for one in scored], asked.accuracy_ratio, asked.format_ratio)})

    async def greet(call: Call) -> Response:
        """V-Triune looks for this sentence before it sends anything."""
        return answer({"message": "Reward Judge Server"})

    endpoints = Endpoints(routes, registry)
    endpoints.add(
        "POST",
        "/judge",
        judge,
        asks=JudgeRequest.model_json_schema(),
        answers=JudgeAnswer,
        with_task=True,
        may_fail=True,
    )
    endpoints.add("GET", "/", greet, asks=None, answers=Greeting, with_head=True)
    return routes


def weigh(results: list[Result], accuracy_ratio: float, format_ratio: float) -> dict[str, float]:
    """V-Triune's formula over the results of accuracy and, where the server has that task, of format."""
    accuracy, layout = (*(result.reward or 0.0 for result in results), 0.0)[:2]
    total = accuracy_ratio + format_ratio
    return {
        "format_reward": layout,
        "accuracy_reward": accuracy,
        "reflection_reward": 0.0,
        "final_reward": accuracy * (accuracy_ratio / total) + layout * (format_ratio / total),
    }


def _read(asked: JudgeRequest, registry: Registry, path_task: str | None, default_task: str) -> list[Labelled]:
    """The answer and, where the server has that task, the format. A wrong answer's format is nobody's business."""
    answered = read_labelled(
        registry,
        _read_answer(asked.answer),
        lambda _: asked.response,
        path_task=path_task,
        default_task=_named_task(asked, registry) or default_task,
        name="accuracy",
    )
    if answered.fault is not None or "format" not in registry:
        return [answered]
    layout = Item(id="format", task="format", response=asked.response, solution=None, params={"style": "think_answer"})
    return [answered, Labelled(layout)]


def _read_answer(answer: Any) -> Any:
    """Lists of boxes are texts in the peer's datasets, as JSON or as Python prints them, with other quotes."""
    if isinstance(answer, str) and answer.lstrip()[:2] in ("[{", "[]"):
        for text in (answer, answer.replace("'", '"')):
            with contextlib.suppress(ValueError):
                return from_json(text)
    return answer


def _named_task(asked: JudgeRequest, registry: Registry) -> str | None:
    """The data source goes first where it names a task: the peer sends counting and OCR to mathverify."""
    source, verifier = asked.data_source or "", asked.reward_verifier or ""
    for name in (_SOURCES.get(source), _VERIFIERS.get(verifier, verifier)):
        if name in registry:
            return name
    return None
