"""What each service tells Prometheus when everything has happened once: the real metrics, with the code's own labels.

Words that the code writes as literals (ends of a prompt, phases of the learner, reasons) are looked for in it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mmr1.records import PolicyVersion
from mmr1.streams.accounts import Accounts
from mmr1.streams.ledger import Ledger
from mmr1_learner import metrics as learner
from mmr1_learner.source import STALE
from mmr1_learner.updates import _PHASES as UPDATE_PHASES
from mmr1_reward_server.api import Outcome, Result
from mmr1_reward_server.metrics import Metrics as RewardMetrics
from mmr1_reward_server.scoring import Scored
from mmr1_rollout_server.metrics import Metrics as RolloutMetrics
from mmr1_rollout_server.states import State
from tests.conftest import make_group, make_prompt

ROOT = Path(__file__).resolve().parents[3]
ENDS = ("published", "fenced", "failed", "dead", "given_back")
PHASES = ("loading", "parity", "training", "evaluating", "done")
JOBS = ("reward-server", "rollout-server", "learner")


def written(name: str) -> str:
    return (ROOT / name).read_text()


def reward_server() -> bytes:
    metrics = RewardMetrics()
    scoring: Any = SimpleNamespace(num_pending=0, num_alive=2)
    metrics.watch(scoring)
    for outcome in Outcome:
        reward = 1.0 if outcome in (Outcome.OK, Outcome.INVALID_OUTPUT) else None
        metrics.item("counting", Scored(Result(id="a", outcome=outcome, reward=reward), 0.01))
    for status in (200, 503):
        metrics.request("/v1/score", status, 0.1)
    metrics.worker_restarted("timeout")
    metrics.held(0, 0)
    return metrics.expose()


def rollout_server() -> bytes:
    metrics = RolloutMetrics()
    for state in State:
        metrics.state.labels(state.value).set(state is State.SERVES)
    source = written("rollout_server/mmr1_rollout_server/worker.py")
    for end in ENDS:
        assert f'"{end}"' in source
        metrics.prompts.labels(end).inc()
    metrics.count_tokens(make_group(make_prompt(0)))
    metrics.prepare_seconds.observe(0.1)
    metrics.score_seconds.observe(0.1)
    metrics.update_seconds.labels("UpdateWeights").observe(0.2)
    metrics.update_failures.labels("UpdateWeights").inc()
    return generate_latest(metrics.registry)


def learner_gauges(phase: str, folder: Path) -> bytes:
    source = "".join(written(f"learner/mmr1_learner/{name}.py") for name in ("leader", "train", "metrics"))
    assert all(f'"{name}"' in source for name in (*PHASES, "paused"))
    files = learner.RunFiles(folder)
    files.paused("Redis is full") if phase == "paused" else files.status(phase)
    learner.export(dict.fromkeys(learner.GAUGES, 0.5))
    learner.export_update(dict.fromkeys(UPDATE_PHASES, 0.1))
    learner.MAX_OFF_POLICY_STEPS.set(1)
    learner.export_probes([0.1])
    learner.WEIGHT_UPDATES.inc()
    ledger = ledger_of(dropped={STALE: 1}, dead={"image_unreadable": 1})
    learner.export_accounts(Accounts(ledger, True, {PolicyVersion(1, 3): {"ready": 2}}, 1.0, 2.0))
    return generate_latest(REGISTRY)


def ledger_of(dropped: dict[str, int], dead: dict[str, int]) -> Ledger:
    return Ledger(
        fed=7,
        trained=2,
        dropped=dropped,
        dead=dead,
        num_prompts=1,
        num_groups=2,
        num_applied=1,
        incarnation=1,
        version_number=3,
    )


def expositions(folder: Path, phase: str = "training") -> dict[str, bytes]:
    """Prometheus' text of each job."""
    texts = (reward_server(), rollout_server(), learner_gauges(phase, folder))
    return dict(zip(JOBS, texts, strict=True))


def labels_by_metric(texts: dict[str, bytes]) -> dict[str, set[str]]:
    """Every series' name, with the labels that any of its samples has; those that a scrape adds are in it."""
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    for text in texts.values():
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    return found
