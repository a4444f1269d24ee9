"""PipelineRL: `POST /verify_answer`, a status word out; `GET /health`.

Any other status than 200 ends the client's run, and its own server calls whatever fails "unparsable", a wrong label
too: so do we. Its reward table turns the words into numbers, so a graded reward is "correct" from a threshold on:
`--correct-from`, or `correct_from` among the params of a label.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from ..api import Outcome, Result
from ..registry import Registry
from ..scoring import Scoring
from .defaults import Defaults
from .exchange import Call, Endpoints, answer
from .holding import Holding
from .labelled import Labelled, read_labelled, score_labelled

_HOLD_SECONDS = 3000.0  # the client waits for an hour
_THRESHOLD = "correct_from"

Status = Literal["correct", "wrong", "no_answer", "unparsable"]


class AnswerRequest(BaseModel):
    prediction: str
    gold: Any = Field(description="any JSON value, see `labels.py`")
    strict: Any = Field(True, description="of the peer's own verifier; not looked at")
    max_prediction_length: Any = Field(1000, description="of the peer's own verifier; the server's limit holds instead")


class AnswerStatus(BaseModel):
    answer_status: Status


class Health(BaseModel):
    status: str


def status_of(result: Result, correct_from: float) -> Status:
    if result.reward is None:
        return "unparsable"
    if result.outcome is Outcome.INVALID_OUTPUT:
        return "no_answer"
    return "correct" if result.reward >= correct_from else "wrong"


def take_threshold(labelled: Labelled, usual: float) -> tuple[Labelled, float]:
    """The item without `correct_from` among its params, which no task knows, and what that is, or else `usual`."""
    params = dict(labelled.item.params)
    if labelled.fault is not None or _THRESHOLD not in params:
        return labelled, usual
    asked = params.pop(_THRESHOLD)
    item = labelled.item.model_copy(update={"params": params})
    if isinstance(asked, bool) or not isinstance(asked, int | float) or asked != asked:
        return Labelled(item, f"label: {_THRESHOLD} must be a number, the smallest reward that is correct"), usual
    return Labelled(item), asked


def router(scoring: Scoring, registry: Registry, defaults: Defaults) -> APIRouter:
    routes = APIRouter(tags=["peers"])
    holding = Holding(scoring, defaults)

    async def verify_answer(call: Call) -> Response:
        """PipelineRL: whether a prediction is correct, in a word."""
        asked = call.read(AnswerRequest)
        labelled = read_labelled(
            registry, asked.gold, lambda _: asked.prediction, path_task=call.task, default_task=defaults.default_task
        )
        labelled, correct_from = take_threshold(labelled, defaults.correct_from)
        scored = await score_labelled(
            holding, defaults, [labelled], num_bytes=len(call.body), hold_seconds=_HOLD_SECONDS, gone=call.gone
        )
        return answer({"answer_status": status_of(scored[0].result, correct_from)})

    async def health(call: Call) -> Response:
        """PipelineRL: the server answers."""
        return answer({"status": "ok"})

    endpoints = Endpoints(routes, registry)
    schema = AnswerRequest.model_json_schema()
    endpoints.add("POST", "/verify_answer", verify_answer, asks=schema, answers=AnswerStatus, with_task=True)
    endpoints.add("GET", "/health", health, asks=None, answers=Health, with_head=True)
    return routes
