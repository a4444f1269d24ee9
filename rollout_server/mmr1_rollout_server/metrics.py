"""What this server tells Prometheus. Names only; the numbers come from where things happen."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from mmr1.records import Group

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """One server's metrics, in a registry of their own: vLLM uses the process's default one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.state = Gauge("mmr1_rollout_state", "1 for the state this server is in", ["state"], registry=self.registry)
        self.version = Gauge(
            "mmr1_rollout_policy_version", "number of the committed policy version", registry=self.registry
        )
        self.running = Gauge("mmr1_rollout_running_prompts", "prompts being sampled", registry=self.registry)
        self.redis_waits = Gauge(
            "mmr1_rollout_redis_waits", "1 while Redis is away, full or read-only", registry=self.registry
        )
        self.prompts = Counter(
            "mmr1_rollout_prompts_total", "prompts by what became of them", ["end"], registry=self.registry
        )
        self.num_generated_tokens = 0
        self.tokens = Counter("mmr1_rollout_generated_tokens_total", "sampled tokens", registry=self.registry)
        self.prepare_seconds = Histogram(
            "mmr1_rollout_prepare_seconds",
            "opening one prompt's images, making tokens and pixels",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.generate_seconds = Histogram(
            "mmr1_rollout_generate_seconds", "sampling one group", buckets=_SECONDS, registry=self.registry
        )
        self.score_seconds = Histogram(
            "mmr1_rollout_score_seconds", "scoring one group", buckets=_SECONDS, registry=self.registry
        )
        self.reward_circuit_open = Gauge(
            "mmr1_rollout_reward_circuit_open", "1 while the reward server does not score", registry=self.registry
        )
        self.reward_circuit_openings = Counter(
            "mmr1_rollout_reward_circuit_openings_total", "times it stopped to score", registry=self.registry
        )
        self.update_seconds = Histogram(
            "mmr1_rollout_weight_update_seconds",
            "one verb of a weight update",
            ["verb"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.update_failures = Counter(
            "mmr1_rollout_weight_update_failures_total", "verbs that failed", ["verb"], registry=self.registry
        )

    def count_tokens(self, group: Group) -> None:
        num_tokens = sum(len(rollout.token_ids) for rollout in group.rollouts)
        self.num_generated_tokens += num_tokens
        self.tokens.inc(num_tokens)
        self.generate_seconds.observe(group.generate_seconds)

    def listen(self, host: str, port: int) -> None:
        """Serve /metrics from a thread of its own."""
        start_http_server(port, addr=host, registry=self.registry)
