"""slime and miles: `POST /slime`, one sample in, a bare JSON number out; with `?detail=1` an object.

slime retries an HTTP error ten times and then raises into the rollout, miles raises at once. So a failed verdict is the
task's floor, and so is a wrong label. `--rm-type remote_rm --rm-url "http://host:8000/slime/ocr?detail=1"
--reward-key score`
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from ..api import Outcome
from ..registry import Registry
from ..scoring import Scoring
from .defaults import Defaults
from .exchange import Call, Endpoints, answer
from .holding import Holding
from .labelled import read_labelled, score_labelled

_HOLD_SECONDS = 100.0  # the client's whole exchange may take 120 s
_LOGGED = (Outcome.INVALID_OUTPUT, Outcome.VERIFIER_ERROR, Outcome.TIMEOUT)


class SampleRequest(BaseModel):
    prompt: Any = Field(None, description="a text or a list of messages; not looked at")
    response: str
    label: Any = Field(None, description="any JSON value, see `labels.py`")


def router(scoring: Scoring, registry: Registry, defaults: Defaults) -> APIRouter:
    routes = APIRouter(tags=["peers"])
    holding = Holding(scoring, defaults)

    async def slime(call: Call) -> Response:
        """slime, miles: the reward as a bare number; with `?detail=1` `score`, components, and 1.0 for what failed."""
        asked = call.read(SampleRequest)
        labelled = read_labelled(
            registry, asked.label, lambda _: asked.response, path_task=call.task, default_task=defaults.default_task
        )
        scored = await score_labelled(
            holding, defaults, [labelled], num_bytes=len(call.body), hold_seconds=_HOLD_SECONDS, gone=call.gone
        )
        result = scored[0].result
        score = registry.floor_of(labelled.item) if result.reward is None else result.reward
        if call.query.get("detail") != "1":
            return answer(score)
        flags = {outcome.value: float(result.outcome is outcome) for outcome in _LOGGED}
        return answer({**result.components, **flags, "score": score})

    Endpoints(routes, registry).add(
        "POST",
        "/slime",
        slime,
        asks=SampleRequest.model_json_schema(),
        answers=float | dict[str, float],
        with_task=True,
        query={"detail": "1 for an object in place of the bare number"},
    )
    return routes
