"""The real stack under faults: nothing lost, nothing trained twice, no wrong weights; what breaks that is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import draw_problems, run_campaign
from tests.chaos.faults import FAULTS, LONG, Fault, draw

pytestmark = [pytest.mark.engine, pytest.mark.chaos, pytest.mark.timeout(1500)]

BUDGET_SECONDS = 150.0


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_problems(tmp_path_factory.mktemp("digits"))


def test_every_group_is_trained_once_whatever_is_killed_or_frozen(digits: Path, tmp_path: Path) -> None:
    """SEMANTICS: a group's life, versions and writers, the weight update. As many kinds of fault as the time allows."""
    campaign = run_campaign(
        tmp_path / "stack", digits, draw(len(FAULTS), seed=1), seed=1, budget_seconds=BUDGET_SECONDS
    )
    assert campaign.num_faults >= 3, "too slow to show anything"
    assert campaign.looks > 100 and campaign.unbalanced == []
    assert campaign.proof is not None and campaign.proof.holds, (campaign.proof, campaign.ledger)
    assert campaign.proof.num_trained > 0


@pytest.mark.mutation
@pytest.mark.parametrize(
    ("mutation", "fault"),
    [
        ("ack too early", Fault("learner", "mid-checkpoint")),
        ("no fencing", Fault("rollout", "before publish", LONG)),
        ("no fingerprint", Fault("wire", "bytes leaving")),
    ],
)
def test_a_guarantee_that_is_broken_on_purpose_is_noticed(
    digits: Path, tmp_path: Path, mutation: str, fault: Fault
) -> None:
    campaign = run_campaign(tmp_path / "stack", digits, [fault], mutations=(mutation,))
    assert campaign.proof is not None
    assert campaign.unbalanced or not campaign.proof.holds, "nobody would have seen it"
