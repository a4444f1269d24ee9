"""ROLL: `POST /submit_task`, then `GET /task_result` with the id, in the query or (as the peer does) in a body.

The client asks every two seconds until its time-out, and submits again when a result has no score: a failed verdict, a
wrong label's too, is therefore a result without one. After five of them it counts 0. Results are kept for a while in a
bounded store; ids are random, since one rollout may be submitted to several tasks and again.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from ..registry import Registry
from ..scoring import Overloaded, Scored, Scoring
from .defaults import Defaults
from .exchange import Call, Endpoints, answer
from .holding import Holding
from .labelled import read_labelled, score_labelled
from .submissions import Submissions

_ROOM_SECONDS = 15.0  # the client gives a submission 20 s
_LONGEST_SECONDS = 3600.0
_DONE, _RUNNING, _FAILED = 0, 1, 2


class TaskRequest(BaseModel):
    response: str
    reward_info: Any = Field(
        None,
        description="an object with `ground_truth` (and `task`, `params`, `image_size`), or a label, see `labels.py`",
    )
    reward_manager: list[Any] = Field([], description="objects; the first `plugin_name` that is a task's name counts")
    timeout: float = Field(300.0, strict=True, gt=0, description="seconds that the submission may take")


class Submitted(BaseModel):
    errcode: int = Field(description="0, or 2 when there is no room")
    errmsg: str
    reward_request_id: str | None = None


class ResultRequest(BaseModel):
    reward_request_id: str


class TaskResult(BaseModel):
    errcode: int = Field(description="0 done, 1 still running")
    errmsg: str
    reward_score: float | None = Field(description="null: submit it again")
    dimention_reward_score: dict[str, Any] = Field(description="always empty; the spelling is the peer's")


def router(scoring: Scoring, registry: Registry, defaults: Defaults) -> APIRouter:
    routes = APIRouter(tags=["peers"])
    holding = Holding(scoring, defaults)
    submissions = Submissions(max_running=defaults.max_held_requests, max_bytes=defaults.max_held_bytes)

    async def submit_task(call: Call) -> Response:
        """ROLL: takes one response and answers the id under which its result will be."""
        asked = call.read(TaskRequest)
        info = asked.reward_info
        beside = info if isinstance(info, dict) and "ground_truth" in info else {}
        labelled = read_labelled(
            registry,
            beside["ground_truth"] if beside else info,
            lambda _: asked.response,
            path_task=call.task,
            default_task=_plugin_task(asked, registry) or defaults.default_task,
            beside=beside,
        )
        seconds = min(asked.timeout, _LONGEST_SECONDS)

        async def run() -> Scored:
            scored = await score_labelled(
                holding, defaults, [labelled], num_bytes=len(call.body), hold_seconds=seconds, tries=1
            )
            return scored[0]

        try:
            name = await submissions.submit(run, num_bytes=len(call.body), room_seconds=_ROOM_SECONDS)
        except Overloaded as error:
            return answer({"errcode": _FAILED, "errmsg": str(error), "reward_request_id": None})
        return answer({"errcode": _DONE, "errmsg": "ok", "reward_request_id": name})

    async def task_result(call: Call) -> Response:
        """ROLL: the score, or that it is not there yet. The id is a query parameter or a body's `reward_request_id`."""
        name = call.query.get("reward_request_id")
        if call.body or name is None:  # a body that is there has to be right, also where it is not needed
            named = call.read(ResultRequest).reward_request_id
            name = name or named
        return answer(_found(submissions, name))

    endpoints = Endpoints(routes, registry)
    endpoints.add(
        "POST", "/submit_task", submit_task, asks=TaskRequest.model_json_schema(), answers=Submitted, with_task=True
    )
    endpoints.add(
        "GET",
        "/task_result",
        task_result,
        asks=ResultRequest.model_json_schema(),
        answers=TaskResult,
        query={"reward_request_id": "the id; without it, the body has to name it"},
        body_required=False,
    )
    return routes


def _plugin_task(asked: TaskRequest, registry: Registry) -> str | None:
    for plugin in asked.reward_manager:
        name = plugin.get("plugin_name") if isinstance(plugin, dict) else None
        if isinstance(name, str) and name in registry:
            return name
    return None


def _found(submissions: Submissions, name: str) -> dict[str, Any]:
    if submissions.is_running(name):
        return _result(_RUNNING, "still running", None)
    finished = submissions.result(name)
    if finished is None:
        return _result(_DONE, "no result under this id (any more): submit it again", None)
    if finished.outcome is None:
        return _result(_DONE, f"not scored: {finished.detail}", None)
    return _result(_DONE, finished.detail if finished.reward is None else "ok", finished.reward)


def _result(errcode: int, message: str, score: float | None) -> dict[str, Any]:
    return {"errcode": errcode, "errmsg": message, "reward_score": score, "dimention_reward_score": {}}
