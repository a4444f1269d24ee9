"""What this server says while Redis is away, full or read-only: once when it begins, once when it is over.

Knows no prompt and decides nothing; who waits for Redis tells it.
"""

from __future__ import annotations

import structlog
from prometheus_client import Gauge
from redis.exceptions import RedisError

from mmr1.streams.patience import obstacle

_log = structlog.get_logger(__name__)


class RedisWaits:
    """One wait for each thing that is being done. The gauge is 1 while there is any."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._waits: dict[str, str] = {}

    @property
    def any(self) -> bool:
        return bool(self._waits)

    def refused(self, doing: str, error: RedisError) -> None:
        """It did not go through, and will be tried again."""
        reason = obstacle(error) or f"Redis does not answer: {error}"
        if self._waits.get(doing) != reason:
            _log.warning("waits_for_redis", doing=doing, reason=reason)
        self._waits[doing] = reason
        self._gauge.set(1)

    def done(self, doing: str) -> None:
        """It went through."""
        if self._waits.pop(doing, None) is not None:
            _log.info("redis_is_back", doing=doing)
            self._gauge.set(float(self.any))
