"""OpenRLHF and lmm-r1: `POST /get_reward`, lists in and lists of the same length out.

The client retries every HTTP error five times and then trains on None, so a failed verdict, a wrong label's
too, is the task's floor with its reason as a number in `extra_logs`. `--reward.remote_url http://host:8000/get_reward/ocr`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from ..api import Outcome
from ..errors import RequestError
from ..registry import Registry, Task
from ..scoring import Scoring
from .chat import extract_response
from .defaults import Defaults
from .exchange import Call, Endpoints, answer
from .holding import Holding
from .labelled import read_labelled, score_labelled

_HOLD_SECONDS = 150.0  # the client gives each of its five tries 180 s
_LOGGED = (Outcome.INVALID_OUTPUT, Outcome.VERIFIER_ERROR, Outcome.TIMEOUT)


class RewardRequest(BaseModel):
    query: list[str] = Field(description="prompt and response, decoded with special tokens")
    prompts: list[str] | None = Field(
        None, description="as long as `query`; without it the last assistant marker counts"
    )
    labels: list[Any] | None = Field(None, description="as long as `query`; any JSON value, see `labels.py`")


class RewardAnswer(BaseModel):
    rewards: list[float]
    scores: list[float] = Field(description="the rewards within 0 and 1, for dynamic filtering")
    extra_logs: dict[str, list[float]]


def router(scoring: Scoring, registry: Registry, defaults: Defaults) -> APIRouter:
    routes = APIRouter(tags=["peers"])
    holding = Holding(scoring, defaults)

    async def get_reward(call: Call) -> Response:
        """OpenRLHF, lmm-r1: scores decoded texts; the prompt and the chat template's marks are stripped here."""
        asked = call.read(RewardRequest)
        prompts = [""] * len(asked.query) if asked.prompts is None else asked.prompts
        labels = [None] * len(asked.query) if asked.labels is None else asked.labels
        if not len(asked.query) == len(prompts) == len(labels):
            sizes = f"{len(asked.query)} queries, {len(prompts)} prompts and {len(labels)} labels"
            raise RequestError(422, "invalid_request", f"{sizes}: the lists must be of one length")
        if len(asked.query) > defaults.max_items:
            raise RequestError(413, "too_many_items", f"{len(asked.query)} queries, the limit is {defaults.max_items}")
        labelled = [
            read_labelled(
                registry,
                label,
                _response_within(query, prompt),
                path_task=call.task,
                default_task=defaults.default_task,
                name=str(place),
            )
            for place, (query, prompt, label) in enumerate(zip(asked.query, prompts, labels, strict=True))
        ]
        scored = await score_labelled(
            holding, defaults, labelled, num_bytes=len(call.body), hold_seconds=_HOLD_SECONDS, gone=call.gone
        )
        results = [one.result for one in scored]
        rewards = [
            registry.floor_of(one.item) if result.reward is None else result.reward
            for one, result in zip(labelled, results, strict=True)
        ]
        # The same keys for every sample: the trainer averages each over the batch.
        logs = {outcome.value: [float(result.outcome is outcome) for result in results] for outcome in _LOGGED}
        scores = [min(1.0, max(0.0, reward)) for reward in rewards]
        return answer({"rewards": rewards, "scores": scores, "extra_logs": logs})

    Endpoints(routes, registry).add(
        "POST",
        "/get_reward",
        get_reward,
        asks=RewardRequest.model_json_schema(),
        answers=RewardAnswer,
        with_task=True,
    )
    return routes


def _response_within(query: str, prompt: str) -> Callable[[Task[Any, Any]], str]:
    return lambda task: extract_response(query, prompt, keep_end=task.keeps_special_tokens)
