"""What a run leaves behind while it goes: JSON Lines for people and reports, gauges for Prometheus.

Lines are appended and flushed one at a time, so a run that is cut keeps all but perhaps its last line. Rank 0 only,
whose threads take turns.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, start_http_server

from mmr1.streams import Accounts

GAUGES = {
    name: Gauge(f"mmr1_learner_{name}", text)
    for name, text in {
        "step": "optimizer steps done",
        "reward_mean": "mean reward of the last step's rollouts",
        "loss": "loss of the last step",
        "kl_k3": "k3 estimate of the divergence from the reference, per token",
        "entropy": "entropy of the policy in nats, per token",
        "temperature": "sampling temperature",
        "lag_mean": "policy lag of the last step's groups, in updates",
        "lag_max": "largest policy lag in the last step",
        "grad_norm": "gradient norm before clipping",
        "off_policy_kl": "divergence between the policy that sampled and the learner, per token, lag included",
        "mismatch_kl": "the same over tokens that the current version sampled: what the engines alone differ by",
        "tokens_per_second": "completion tokens trained on per second",
        "probe_max_abs_dlogp": "largest |delta log p| of the last weight update's probe",
    }.items()
}
PHASE = Gauge("mmr1_learner_phase", "1 for what the learner is doing, as in status.json", ["phase"])
MAX_OFF_POLICY_STEPS = Gauge("mmr1_learner_max_off_policy_steps", "the run's bound on policy lag, in updates")
PROBE_BOUND_RATIO = Gauge(
    "mmr1_learner_probe_bound_ratio",
    "mean |delta log p| of the last weight update's probes over its bound, the worst server's; above 1 is refused",
)
LEDGER = Gauge("mmr1_ledger_groups", "groups by state", ["state"])
LEDGER_REASONS = Gauge("mmr1_ledger_reasons", "groups that were dropped or are dead, by reason", ["state", "reason"])
LEDGER_PENDING = Gauge("mmr1_ledger_pending", "pending groups by station: prompts, ready, applied", ["station"])
LEDGER_READY = Gauge("mmr1_ledger_ready_by_version", "ready and applied groups, by version", ["version"])
LEDGER_OLDEST = Gauge("mmr1_ledger_oldest_seconds", "how long the oldest entry waits; 0 when there is none", ["stream"])
LEDGER_BALANCED = Gauge("mmr1_ledger_balanced", "1 while fed = trained + dropped + dead + pending")
UPDATE_SECONDS = Gauge(
    "mmr1_learner_weight_update_seconds",
    "the last weight update by phase, from closing admission to opening it",
    ["phase"],
)
WEIGHT_UPDATES = Counter("mmr1_learner_weight_updates_total", "committed weight updates")


class RunFiles:
    """The files of one run's folder that the learner writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._status = {"phase": "loading", "detail": ""}
        self._turn = threading.RLock()

    def append(self, name: str, records: Iterable[dict[str, Any]], durable: bool = False) -> None:
        """Append JSON objects to `name`.jsonl; `durable`: they are on disk. Numbers that JSON lacks become null."""
        with self._turn, (self._folder / f"{name}.jsonl").open("a") as file:
            for record in records:
                file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def has(self, file: str, **fields: Any) -> bool:
        """Whether `file`.jsonl holds a line with these values."""
        path = self._folder / f"{file}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return any(all(json.loads(line).get(key) == value for key, value in fields.items()) for line in lines)

    def rewind(self, step: int) -> None:
        """Forget lines of optimizer steps that the checkpoint a run goes on from does not contain.

        `step` is the checkpoint's; -1 when there is none: all lines are of a life that left nothing durable.
        """
        for name in ("metrics", "completions", "evaluations", "proof"):
            path = self._folder / f"{name}.jsonl"
            if path.exists():
                kept = [line for line in path.read_text().splitlines() if _step_of(line, default=step + 1) <= step]
                _replace(path, "".join(f"{line}\n" for line in kept))

    def write(self, name: str, document: Any) -> None:
        """Write `name`.json as a whole; a reader sees the old or the new one."""
        text = json.dumps(_finite(document), indent=1, allow_nan=False)
        with self._turn:
            _replace(self._folder / f"{name}.json", text)

    def read(self, name: str, default: Any) -> Any:
        path = self._folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else default

    def status(self, phase: str, detail: str = "") -> None:
        """What the learner is doing now, for the live panel."""
        self._status = {"phase": phase, "detail": detail}
        self.repeat_status()

    def repeat_status(self) -> None:
        """Something else stood there for a while."""
        self._show(self._status)

    def paused(self, reason: str) -> None:
        """Redis refuses for now; `repeat_status` when it does no more."""
        self._show({"phase": "paused", "detail": f"paused: {reason}"})

    def _show(self, status: dict[str, str]) -> None:
        self.write("status", status)
        PHASE.clear()
        PHASE.labels(status["phase"]).set(1)


def serve_metrics(host: str, port: int) -> None:
    start_http_server(port, addr=host)


def export(metrics: dict[str, Any]) -> None:
    """Set the gauges of a step."""
    for name, gauge in GAUGES.items():
        if metrics.get(name) is not None:
            gauge.set(metrics[name])


def export_update(phases: dict[str, float]) -> None:
    """Set the gauges of a weight update that has been committed."""
    UPDATE_SECONDS.clear()
    for phase, seconds in phases.items():
        UPDATE_SECONDS.labels(phase).set(seconds)


def export_probes(shares: Iterable[float]) -> None:
    """How much of its bound each server has used. NaN passes no bound, so it counts as above all."""
    PROBE_BOUND_RATIO.set(max((math.inf if math.isnan(share) else share for share in shares), default=0.0))


def export_accounts(accounts: Accounts) -> None:
    """Set the gauges of the queue. Versions that have no group waiting have no gauge: a run has too many of them."""
    ledger = accounts.ledger
    for state, count in (
        ("fed", ledger.fed),
        ("trained", ledger.trained),
        ("dropped", sum(ledger.dropped.values())),
        ("dead", sum(ledger.dead.values())),
        ("pending", ledger.pending),
    ):
        LEDGER.labels(state).set(count)
    for state, reasons in (("dropped", ledger.dropped), ("dead", ledger.dead)):
        for reason, count in reasons.items():
            LEDGER_REASONS.labels(state, reason).set(count)
    for station, count in accounts.as_dict()["pending_by_state"].items():
        LEDGER_PENDING.labels(station).set(count)
    LEDGER_READY.clear()
    for version, counts in accounts.by_version.items():
        if counts["ready"]:
            LEDGER_READY.labels(str(version)).set(counts["ready"])
    LEDGER_OLDEST.labels("prompts").set(accounts.oldest_prompt_seconds or 0.0)
    LEDGER_OLDEST.labels("groups").set(accounts.oldest_group_seconds or 0.0)
    LEDGER_BALANCED.set(ledger.balanced)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _step_of(line: str, default: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return default


def _replace(path: Path, text: str) -> None:
    aside = path.with_suffix(path.suffix + ".writing")
    aside.write_text(text)
    os.replace(aside, path)
