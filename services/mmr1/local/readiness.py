"""Is a service ready? One question per kind of service, each answered within a second unless more is given, never by an
exception.

`accepts weights`, not `serves`, is what a rollout server is asked for: it serves only after the learner's first update,
and the learner would wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

# Health checks of containers run this file every few seconds, so each question imports what it is asked with.
if TYPE_CHECKING:
    from mmr1.rollout_access import RolloutAccess

PROBE_SECONDS = 1.0
ACCEPTS_WEIGHTS = "mmr1.v1.RolloutService/weights"
SERVES = "mmr1.v1.RolloutService"
LIVES = ""  # the process answers, whatever it holds

Probe = Callable[[], Awaitable[bool]]


def redis_answers(url: str) -> Probe:
    """PING is answered: the append-only file is loaded."""
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    async def probe() -> bool:
        try:
            async with Redis.from_url(
                url, socket_timeout=PROBE_SECONDS, socket_connect_timeout=PROBE_SECONDS
            ) as client:
                return bool(await client.ping())
        except (RedisError, OSError):
            return False

    return probe


def http_ready(url: str, seconds: float = PROBE_SECONDS) -> Probe:
    """GET answers 200."""
    import httpx

    async def probe() -> bool:
        try:
            async with httpx.AsyncClient(timeout=seconds, trust_env=False) as client:
                return (await client.get(url)).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    return probe


def grpc_serving(
    address: str,
    service: str = ACCEPTS_WEIGHTS,
    access: RolloutAccess | None = None,
    seconds: float = PROBE_SECONDS,
) -> Probe:
    """The standard health service reports `service` as SERVING. Of `access` it needs TLS alone: health has no token."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async def probe() -> bool:
        async with access.open_channel(address) if access else grpc.aio.insecure_channel(address) as channel:
            try:
                reply = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=seconds
                )
            except grpc.aio.AioRpcError:
                return False
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    return probe


async def wait_until(probe: Probe, interval_seconds: float = 0.2) -> None:
    """Return once `probe` says yes. Bound it with asyncio.timeout."""
    while not await probe():  # noqa: ASYNC110  the answer is in another process: there is no event to wait for
        await asyncio.sleep(interval_seconds)
