"""The real stack under faults: nothing lost, nothing trained twice, no wrong weights; what breaks that is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import draw_problems, run_campaign
from tests.chaos.faults import LONG, SUBSET, Fault

pytestmark = [pytest.mark.engine, pytest.mark.chaos, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_problems(tmp_path_factory.mktemp("digits"))


def test_every_group_is_trained_once_whatever_is_killed_or_frozen(digits: Path, tmp_path: Path) -> None:
    """SEMANTICS: a group's life, versions and writers, the weight update."""
    campaign = run_campaign(tmp_path / "stack", digits, SUBSET)
    assert len(campaign.blows) == len(SUBSET)
    assert campaign.broken == set(), (campaign.proof, campaign.ledger, campaign.unbalanced)
    assert campaign.looks > 100 and campaign.proof is not None and campaign.proof.num_trained > 0


@pytest.mark.mutation
@pytest.mark.parametrize(
    ("mutation", "fault", "seen"),
    [
        ("ack too early", Fault("learner", "mid-checkpoint"), "lost"),
        ("no fencing", Fault("rollout", "before publish", LONG), "unbalanced"),
        ("no fingerprint", Fault("wire", "bytes leaving"), "spoiled"),
    ],
)
def test_a_guarantee_that_is_broken_on_purpose_is_noticed(
    digits: Path, tmp_path: Path, mutation: str, fault: Fault, seen: str
) -> None:
    campaign = run_campaign(tmp_path / "stack", digits, [fault], mutations=(mutation,))
    assert seen in campaign.broken, "nobody would have seen it"
