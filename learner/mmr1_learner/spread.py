"""Prompts spread evenly over rollout servers, by direct calls. What a server that fails has left goes to the others.

Knows nothing of what the groups are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import structlog

from mmr1.records import Group, Prompt
from mmr1.rollout_client import RolloutClient
from mmr1_learner.waiting import Tick, results

log = structlog.get_logger()

_CALL_SECONDS = 600.0
_CONCURRENCY = 32  # prompts at once, on each server
# The prompt's own fault, or one that all servers share: no other server would say anything else.
_FINAL = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def generate_everywhere(clients: Sequence[RolloutClient], prompts: Sequence[Prompt], tick: Tick) -> list[Group]:
    """The groups of `prompts`, in their order. A server that has failed once is asked nothing more.

    Raises:
        grpc.RpcError: a prompt is refused, or no server is left; the last one's failure.
    """
    groups: dict[int, Group] = {}
    left = list(clients)
    pool = ThreadPoolExecutor(len(left) * _CONCURRENCY)

    def ask(client: RolloutClient, place: int) -> grpc.RpcError | None:
        try:
            groups[place] = client.generate(prompts[place], timeout=_CALL_SECONDS)
        except grpc.RpcError as error:
            if error.code() in _FINAL:
                raise
            return error
        return None

    try:
        while missing := [place for place in range(len(prompts)) if place not in groups]:
            asked = [left[turn % len(left)] for turn in range(len(missing))]
            answers = results([pool.submit(ask, *pair) for pair in zip(asked, missing, strict=True)], tick)
            failures = {client: error for client, error in zip(asked, answers, strict=True) if error is not None}
            left = [client for client in left if client not in failures]
            for client, error in failures.items():
                log.warning("rollout server asked no more", server=client.address, reason=error.details())
                if not left:
                    raise error
        return [groups[place] for place in range(len(prompts))]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
