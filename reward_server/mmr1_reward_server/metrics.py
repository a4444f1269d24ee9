"""What Prometheus sees: requests, items, rewards, queue. It measures nothing itself; the app tells it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .api import Result

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ITEM_SECONDS = (0.00001, 0.0001, 0.001, 0.01, 0.1, 1, 10)
_REWARDS = (-1.0, -0.5, -0.000001, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0)


class Metrics:
    """One server's metrics, in a collector of their own so that two servers in one process do not mix."""

    def __init__(self, queue_depth: Callable[[], float]) -> None:
        self._collectors = CollectorRegistry()
        own = self._collectors
        self._requests = Counter("mmr1_reward_requests", "Requests answered", ["route", "status"], registry=own)
        self._request_seconds = Histogram(
            "mmr1_reward_request_seconds",
            "From a request's head to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self._items = Counter("mmr1_reward_items", "Items answered", ["task", "outcome"], registry=own)
        self._item_seconds = Histogram(
            "mmr1_reward_item_seconds",
            "Scoring one item, waiting excluded",
            ["task"],
            buckets=_ITEM_SECONDS,
            registry=own,
        )
        self._rewards = Histogram("mmr1_reward_value", "Rewards given", ["task"], buckets=_REWARDS, registry=own)
        depth = Gauge("mmr1_reward_queue_depth", "Items taken and not yet answered", registry=own)
        depth.set_function(queue_depth)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def item(self, task: str, result: Result, seconds: float) -> None:
        """`task` must be one that exists: each new label lives for ever."""
        self._items.labels(task, result.outcome.value).inc()
        self._item_seconds.labels(task).observe(seconds)
        if result.reward is not None:
            self._rewards.labels(task).observe(result.reward)

    def expose(self) -> bytes:
        return generate_latest(self._collectors)
