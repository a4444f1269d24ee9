"""The peers' routes: other projects' wire formats, one file each, so that their own clients need no change.

Every scoring route also takes the task's name behind its path (`/get_reward/ocr`). Otherwise the task is the one that
the request names, or else the server's default. What becomes of an item, for each client:

| peer | ok, invalid_output | verifier_error, timeout | no capacity within | then |
|---|---|---|---|---|
| OpenRLHF, lmm-r1 | the reward | tried twice; the floor, named in `extra_logs` | 150 s | 503: it tries 5 times |
| slime, miles | the reward alone | tried twice; the floor, named in `?detail=1` | 100 s | 503: slime tries 10 times |
| NeMo-Gym | the row and its reward | tried twice; masked, with kind and reason | 600 s | masked |
| verifiers, prime-rl | the row and its reward | tried twice; 422, 500: the rollout failed | 45 s | 503: the same |
| V-Triune | four rewards | 422, 500: it tries 3 times, prints it and takes 0 | 20 s | 503: the same |
| ROLL | a score | a result without a score: it submits again, 5 times | its own time-out | the same |
| PipelineRL | correct, wrong; no_answer | tried twice; unparsable, as from its own | 3000 s | 503: its run ends |

An item that no try could score (a solution of another form) is not tried twice; it is 422 where others are 500. So is a
label that is wrong in itself (unknown keys or task, an impossible `image_size`): no refusal of the request, which ends
the runs of most of these clients, but a verifier_error of its item alone. Both are named in the log. What a model wrote
never fails a request. A request of another form is 422, an unknown task in the path 404, both with one line that says
what to change. Nothing here fetches a URL or opens a path that a request names.
"""

from __future__ import annotations

from fastapi import APIRouter

from ..registry import Registry
from ..scoring import Scoring
from . import nemo_gym, openrlhf, pipelinerl, roll, slime, vtriune
from .defaults import Defaults, usual_task

__all__ = ["DIALECTS", "Defaults", "router", "usual_task"]

DIALECTS = (openrlhf, slime, nemo_gym, vtriune, roll, pipelinerl)


def router(scoring: Scoring, registry: Registry, defaults: Defaults) -> APIRouter:
    """The routes of all peers. Raises BadItem when the default task is none of the registry's."""
    registry[defaults.default_task]
    routes = APIRouter()
    for dialect in DIALECTS:
        routes.include_router(dialect.router(scoring, registry, defaults))
    return routes
