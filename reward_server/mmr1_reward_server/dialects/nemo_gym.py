"""NeMo-Gym, verifiers and prime-rl: a resources server without state. `POST /verify` echoes the row and adds `reward`.

The task and its solution stand in the row (`task`, `params`, `image_size`, and `label` or one of its other names). A
failed verdict, a wrong label's too, is masked for NeMo-Gym, whose rows carry `_ng_task_index` or `_ng_rollout_index`,
and an HTTP error for verifiers, which knows no mask but drops a rollout that failed. Images in a row are carried back
unread.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..api import Outcome, first_problem
from ..errors import RequestError
from ..registry import Registry
from ..scoring import Overloaded, Scoring
from .defaults import Defaults
from .exchange import Call, Endpoints, answer, not_scored
from .gym_metrics import aggregate
from .holding import Holding
from .labelled import read_labelled, score_labelled

# NeMo-Gym has no time-out, verifiers' is 60 s unless its configuration says otherwise.
_GYM_HOLD_SECONDS = 600.0
_VERIFIERS_HOLD_SECONDS = 45.0
_LABELS = ("label", "solution", "ground_truth", "expected_answer", "answer")
_METADATA = "verifier_metadata"
_GYM_KEYS = ("_ng_task_index", "_ng_rollout_index")
# What an earlier verdict on the same row may have left: rows are verified again from files of results. NeMo-RL ends a
# run whose components do not add up to the reward.
_VERDICT_KEYS = ("mask_sample", "failure_kind", "failure_reason", "reward_components")
_FAILURE_KINDS = {Outcome.VERIFIER_ERROR: "verifier_error", Outcome.TIMEOUT: "mmr1:scorer_timeout"}

_ROW = {
    "type": "object",
    "required": ["responses_create_params", "response"],
    "properties": {
        "responses_create_params": {"type": "object"},
        "response": {
            "type": "object",
            "required": ["output"],
            "properties": {"output": {"type": "array", "items": {"type": "object"}}},
        },
        "task": {"type": "string", "description": "which task scores this row"},
        "label": {"description": f"the solution; also looked for under {', '.join((*_LABELS[1:], _METADATA))}"},
    },
    "additionalProperties": True,
}
_ANY_OBJECT = {"type": "object", "additionalProperties": True}
_RESPONSES = {
    "type": "object",
    "required": ["verify_responses"],
    "properties": {"verify_responses": {"type": "array", "items": {"type": "object"}}},
}


class _Output(BaseModel):
    """What is read of one item of the model's output; there is more in it."""

    type: str = "message"
    role: str = "assistant"
    content: Any = None


class _ModelResponse(BaseModel):
    output: list[_Output]


class VerifyAnswer(BaseModel):
    """The row as it came, with the verdict."""

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]
    reward: float


def router(scoring: Scoring, registry: Registry, defaults: Defaults) -> APIRouter:
    routes = APIRouter(tags=["peers"])
    holding = Holding(scoring, defaults)

    async def verify(call: Call) -> Response:
        """NeMo-Gym, verifiers, prime-rl: the row with its reward. Base64 images in it are returned as they came."""
        row = call.read_object()
        response = read_response(row)
        labelled = read_labelled(
            registry,
            label_of(row),
            lambda _: response,
            path_task=call.task,
            default_task=defaults.default_task,
            beside=row,
        )
        masks = any(key in row for key in _GYM_KEYS)
        hold_seconds = _GYM_HOLD_SECONDS if masks else _VERIFIERS_HOLD_SECONDS
        floor = registry.floor_of(labelled.item)
        try:
            scored = await score_labelled(
                holding, defaults, [labelled], num_bytes=len(call.body), hold_seconds=hold_seconds, gone=call.gone
            )
        except Overloaded as error:
            if not masks:
                raise
            return answer(_masked(row, floor, "provider_unavailable", str(error)))
        result = scored[0].result
        if result.reward is not None:
            return answer(_without_verdict(row) | {"reward": result.reward})
        if not masks:
            raise not_scored(scored[0])
        return answer(_masked(row, floor, _FAILURE_KINDS[result.outcome], result.detail))

    endpoints = Endpoints(routes, registry)
    # With its observability on, NeMo-Gym puts the rollout's name before each path.
    for prefix in ("", "/ng-rollout/{rollout_id}"):
        endpoints.add("POST", f"{prefix}/seed_session", _session, asks=_ANY_OBJECT, answers=dict[str, str])
        endpoints.add("POST", f"{prefix}/close_session", _session, asks=_ANY_OBJECT, answers=dict[str, str])
        endpoints.add(
            "POST", f"{prefix}/verify", verify, asks=_ROW, answers=VerifyAnswer, with_task=True, may_fail=True
        )
        endpoints.add(
            "POST", f"{prefix}/aggregate_metrics", _aggregate_metrics, asks=_RESPONSES, answers=dict[str, Any]
        )
        endpoints.add("GET", f"{prefix}/reverify_mode", _reverify_mode, asks=None, answers=str)
    return routes


async def _session(call: Call) -> Response:
    """NeMo-Gym, verifiers: nothing is kept between requests, so there is nothing to do."""
    asked = call.read_object()
    name = asked.get("resources_session_id")
    return answer({"resources_session_id": name} if isinstance(name, str) else {})


async def _aggregate_metrics(call: Call) -> Response:
    """NeMo-Gym: means of the rewards and the other numbers over the samples that are not masked."""
    responses = call.read_object().get("verify_responses")
    if not isinstance(responses, list) or not all(isinstance(one, dict) for one in responses):
        raise RequestError(422, "invalid_request", "verify_responses must be a list of objects")
    return answer(aggregate(responses))


async def _reverify_mode(call: Call) -> Response:
    """NeMo-Gym: the same row may be verified again at any time."""
    return answer("stateless")


def read_response(row: dict[str, Any]) -> str:
    """The text of all the assistant's messages in the row's response. Raises RequestError (422)."""
    if not isinstance(row.get("responses_create_params"), dict):
        raise RequestError(422, "invalid_request", "responses_create_params: an object is required")
    try:
        response = _MODEL_RESPONSE.validate_python(row.get("response"))
    except ValidationError as error:
        raise RequestError(422, "invalid_request", f"response: {first_problem(error)}") from None
    texts = []
    for output in response.output:
        if output.type == "message" and output.role == "assistant":
            texts += _texts(output.content)
    return "".join(texts)


_MODEL_RESPONSE = TypeAdapter(_ModelResponse)


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "output_text"]
    return [text for text in texts if isinstance(text, str)]


def label_of(row: dict[str, Any]) -> Any:
    """The first of its names that is there; null gives way to the next, since rows of merged datasets have them all."""
    present = [row[name] for name in _LABELS if name in row]
    return next((label for label in present if label is not None), None) if present else row.get(_METADATA)


def _without_verdict(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key not in _VERDICT_KEYS}
    config = kept.get("instance_config")
    if isinstance(config, dict) and "mask_sample" in config:
        kept["instance_config"] = {key: value for key, value in config.items() if key != "mask_sample"}
        if not kept["instance_config"]:
            del kept["instance_config"]
    return kept


def _masked(row: dict[str, Any], floor: float, kind: str, reason: str) -> dict[str, Any]:
    # Older versions of NeMo-RL look for the mask within `instance_config`.
    config = row.get("instance_config")
    return {
        **_without_verdict(row),
        "reward": floor,
        "mask_sample": True,
        "failure_kind": kind,
        "failure_reason": reason,
        "instance_config": {**(config if isinstance(config, dict) else {}), "mask_sample": True},
    }
