"""What Prometheus sees: requests, items, rewards, queue, workers. It measures nothing itself; others tell it.

Counting one item costs less than a microsecond: plain dictionaries, turned into Prometheus' families only when it asks.
They are written by one event loop, so there is no lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .api import Outcome
from .scoring import Scored, Scoring

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ITEM_SECONDS = (0.00001, 0.0001, 0.001, 0.01, 0.1, 1, 10)
_REWARDS = (-1.0, -0.5, -0.000001, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0)


class _Histogram:
    """One labelled histogram."""

    def __init__(self, name: str, help_text: str, label: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._help = help_text
        self._label = label
        self._bounds = bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, label: str, value: float) -> None:
        counts = self._counts.get(label)
        if counts is None:
            counts = self._counts[label] = [0] * (len(self._bounds) + 1)
            self._sums[label] = 0.0
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[label] += value

    def family(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(self._name, self._help, labels=[self._label])
        for label, counts in self._counts.items():
            buckets: list[tuple[str, float]] = []
            total = 0
            for bound, count in zip((*map(float, self._bounds), float("inf")), counts, strict=True):
                total += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
            family.add_metric([label], buckets, sum_value=None)
            # By hand: add_metric leaves both out where bounds are negative.
            family.add_sample(f"{self._name}_count", {self._label: label}, total)
            family.add_sample(f"{self._name}_sum", {self._label: label}, self._sums[label])
        return family


class Metrics(Collector):
    """One server's metrics, in a registry of their own so that two servers in one process do not mix."""

    def __init__(self) -> None:
        self._scoring: Scoring | None = None
        self._requests: Counter[tuple[str, int]] = Counter()
        self._items: Counter[tuple[str, Outcome]] = Counter()
        self._restarts: Counter[str] = Counter()
        self._num_held = 0
        self._bytes_held = 0
        self._request_seconds = _Histogram(
            "mmr1_reward_request_seconds", "From a request's head to its answer", "route", _SECONDS
        )
        self._item_seconds = _Histogram(
            "mmr1_reward_item_seconds", "Scoring one item, waiting excluded", "task", _ITEM_SECONDS
        )
        self._rewards = _Histogram("mmr1_reward_value", "Rewards given", "task", _REWARDS)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def watch(self, scoring: Scoring) -> None:
        """Whose queue and workers are shown."""
        self._scoring = scoring

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests[route, status] += 1
        self._request_seconds.observe(route, seconds)

    def item(self, task: str, scored: Scored) -> None:
        """`task` must be one that exists: each new label lives for ever."""
        self._items[task, scored.outcome] += 1
        self._item_seconds.observe(task, scored.seconds)
        if scored.reward is not None:
            self._rewards.observe(task, scored.reward)

    def worker_restarted(self, cause: str) -> None:
        self._restarts[cause] += 1

    def held(self, num_requests: int, num_bytes: int) -> None:
        """So many more wait for capacity than before; negative for fewer."""
        self._num_held += num_requests
        self._bytes_held += num_bytes

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("mmr1_reward_requests", "Requests answered", labels=["route", "status"])
        for (route, status), count in self._requests.items():
            requests.add_metric([route, str(status)], count)
        items = CounterMetricFamily("mmr1_reward_items", "Items answered", labels=["task", "outcome"])
        for (task, outcome), count in self._items.items():
            items.add_metric([task, outcome.value], count)
        restarts = CounterMetricFamily(
            "mmr1_reward_worker_restarts", "Worker processes that were replaced or did not start", labels=["cause"]
        )
        for cause, count in self._restarts.items():
            restarts.add_metric([cause], count)
        yield from (requests, items, restarts)
        yield from (self._request_seconds.family(), self._item_seconds.family(), self._rewards.family())
        yield GaugeMetricFamily("mmr1_reward_held_requests", "Peers' requests that wait for capacity", self._num_held)
        yield GaugeMetricFamily("mmr1_reward_held_bytes", "Of the bodies of those requests", self._bytes_held)
        if self._scoring is not None:
            num_pending, num_alive = self._scoring.num_pending, self._scoring.num_alive
            yield GaugeMetricFamily("mmr1_reward_queue_depth", "Items taken and not yet answered", num_pending)
            yield GaugeMetricFamily("mmr1_reward_workers_alive", "Worker processes that are ready", num_alive)

    def expose(self) -> bytes:
        return generate_latest(self._registry)
