"""The learner's connection to Redis: waited for at the start, and never silent for long. Knows nothing of queues."""

from __future__ import annotations

import time

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from mmr1.redis_access import RedisAccess, access_to
from mmr1.streams import RestartWatch

log = structlog.get_logger()

_START_SECONDS = 60.0
_ANSWER_SECONDS = 10.0  # an answer later than this is none; shorter than what a learner told to stop is given


def connect(given: RedisAccess | str, answer_seconds: float = _ANSWER_SECONDS) -> redis.Redis:
    """A client that has reached its Redis, which may still be starting: a minute is waited for it.

    `given` is a URL, or one with what stands beside it.

    It repeats no command: whether a lost answer may be asked for again, only the caller knows. A connection to a Redis
    that was started anew meanwhile is an error, once.

    Raises:
        ConfigurationError: Redis turns us away: a restart would not mend it.
        redis.RedisError: nothing answers, or not as a Redis that lets us in. A restart may mend it.
    """
    access = access_to(given)
    client = access.client(
        socket_timeout=answer_seconds,
        socket_connect_timeout=answer_seconds,
        retry=Retry(NoBackoff(), 0),
        redis_connect_func=RestartWatch(),
    )
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            client.ping()
            return client
        except redis.RedisError as error:
            if refusal := access.refusal(error):
                raise refusal from None
            if not isinstance(error, redis.ConnectionError | redis.TimeoutError) or time.monotonic() > deadline:
                raise
            log.warning("waiting for Redis", at=access.shown, reason=str(error))
            time.sleep(1.0)
