"""What the learner tells Prometheus beside a step's numbers: its phase, its probes, accounts from the start."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from prometheus_client import REGISTRY

from mmr1.errors import WeightUpdateError
from mmr1.records import PolicyVersion
from mmr1_learner import metrics as outputs
from mmr1_learner import probing
from mmr1_learner.metrics import RunFiles
from mmr1_learner.parity import ParityReport
from mmr1_learner.probing import Prober
from mmr1_learner.updates import Updates
from mmr1_learner.weights import UpdateResult
from tests.unit.learner.run_of_a_test import Run


def phases() -> list[str]:
    (family,) = [family for family in REGISTRY.collect() if family.name == "mmr1_learner_phase"]
    assert {sample.value for sample in family.samples} <= {1.0}
    return [sample.labels["phase"] for sample in family.samples]


def test_the_phase_is_that_of_the_status_file(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    for change, phase in [
        (lambda: files.status("training", "step 3 of 9"), "training"),
        (lambda: files.paused("Redis is full"), "paused"),
        (files.repeat_status, "training"),
    ]:
        change()
        assert phases() == [phase] == [files.read("status", {})["phase"]]


class Client:
    """A rollout server whose log-probabilities are so far from the learner's."""

    def __init__(self, address: str, distance: float) -> None:
        self.address, self.distance = address, distance


class Sender:
    """Stands where WeightSender does: asks the probe of every client, as an update does."""

    def __init__(self, *clients: Client) -> None:
        self.clients = clients

    def update(self, version: object, probe: Any, *_: object) -> UpdateResult:
        for client in self.clients:
            probe(client)
        return UpdateResult(3.0, len(self.clients), None, 0, {"closing": 0.5, "proof": 2.0, "opening": 0.5})


def updates(sender: Sender, prober: Prober, files: RunFiles) -> Updates:
    stand_ins: Any = (Mock(), sender, prober, Mock(), files, None, None, None)
    return Updates(*stand_ins)


@pytest.fixture
def judged(tmp_path: Path) -> tuple[Prober, RunFiles]:
    """A prober that has judged server `a` at the gate, and the files of its run."""

    class Compared:
        @staticmethod
        def compare_each(distances: list[float]) -> list[ParityReport]:
            return [ParityReport(distance, distance, 1, 0.0) for distance in distances]

    class Bounded:
        dtype = "float32"

        @staticmethod
        def bound(_: str) -> float:
            return 0.001

    prober = object.__new__(Prober)
    prober.__dict__ |= {"_config": Bounded(), "_bounds": {"a": 0.0004}, "_scorer": Compared()}
    prober.__dict__ |= {"comparing_seconds": 0.0, "_reports": {}, "_ask_all": lambda *_: None}
    prober.__dict__["_answers"] = lambda client: {client: client.distance}
    return prober, RunFiles(tmp_path)


@pytest.mark.parametrize(
    ("distances", "share"),
    [({"a": 0.0001, "b": 0.00002}, 0.25), ({"a": 0.0001, "b": 0.0003}, 0.75), ({"a": 0.0005}, 1.25)],
)
def test_the_probe_that_is_nearest_to_its_bound_is_shown(
    judged: Any, distances: dict[str, float], share: float
) -> None:
    """`b` came after the gate and has the widest bound of those that were there, which is `a`'s."""
    sender = Sender(*(Client(address, distance) for address, distance in distances.items()))
    with pytest.raises(WeightUpdateError) if share > 1 else nullcontext():
        updates(sender, *judged).send(PolicyVersion(1, 1), 0, judged[0].probe)
    assert REGISTRY.get_sample_value("mmr1_learner_probe_bound_ratio") == pytest.approx(share)


def test_planted_adapters_are_not_taken_for_a_fault(judged: Any) -> None:
    class Planted(Sender):
        def update(self, version: object, probe: Any, *_: object) -> UpdateResult:
            with pytest.raises(WeightUpdateError):
                probe(Client("a", 0.01))
            return super().update(version, probe)

    updates(Planted(Client("a", 0.0001)), *judged).send(PolicyVersion(1, 1), 0, judged[0].probe)
    assert REGISTRY.get_sample_value("mmr1_learner_probe_bound_ratio") == pytest.approx(0.25)


@pytest.mark.parametrize("shares", [[math.nan, 0.1], [0.1, math.nan]])
def test_a_probe_that_is_no_number_is_above_every_bound(shares: list[float]) -> None:
    outputs.export_probes(shares)
    assert REGISTRY.get_sample_value("mmr1_learner_probe_bound_ratio") == math.inf


def test_the_first_scrape_already_finds_balanced_accounts(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gauge that nobody has set yet is 0, and would say that the accounts do not balance."""
    run = Run(redis_url, tmp_path)
    leader = run.learner().leader
    outputs.LEDGER_BALANCED.set(0)
    seen: list[float | None] = []

    class SeenError(Exception):
        """Far enough."""

    def scraped(*_: object) -> None:
        seen.extend(map(REGISTRY.get_sample_value, ("mmr1_ledger_balanced", "mmr1_learner_max_off_policy_steps")))
        raise SeenError

    monkeypatch.setattr(leader, "take_over", lambda _: None)
    monkeypatch.setattr(outputs, "serve_metrics", scraped)
    with pytest.raises(SeenError):
        leader.prepare(None)
    assert seen == [1.0, cast(Any, run.config).max_off_policy_steps]


def test_of_a_proof_the_record_says_what_the_servers_take_and_what_the_learner_does(
    judged: tuple[Prober, RunFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    prober, files = judged
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(probing, "time", Mock(monotonic=lambda: next(clock)))
    result = updates(Sender(Client("a", 0.0001)), prober, files).send(PolicyVersion(1, 1), 1, prober.probe)
    assert result.phases == {"closing": 0.5, "sampling": 1.5, "comparing": 0.5, "opening": 0.5}
    assert list(result.phases) == ["closing", "sampling", "comparing", "opening"], "as they follow each other"
