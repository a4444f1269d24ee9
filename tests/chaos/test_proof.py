"""The proof itself, on diaries that are made up: each broken promise is seen, and by its own name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.campaign import Campaign, table
from tests.chaos.faults import LONG, Fault
from tests.chaos.proof import Proof, drops, history, prove, seconds_to_step
from tests.chaos.stack import Blow

START = {"goes_on_from": 0}
UPDATE = [{"update": "1.1"}, {"received": "a", "as_sent": True}, {"committed": "1.1"}]


def step(number: int, *ids: str, time: float = 0.0) -> dict[str, Any]:
    return {"step": number, "ids": list(ids), "time": time}


def drop(id_: str, reason: str, following: str | None = None, *, answered: bool = True) -> list[dict[str, Any]]:
    asked = {"dropping": id_, "reason": reason, "next": following}
    return [asked, {"dropped": id_, "reason": reason}] if answered else [asked]


def lines_of(diary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A proof.jsonl that says the same."""
    return [{"step": number, "groups": ids} for number, ids in history(diary).items()]


def proved(diary: list[dict[str, Any]], accounts: dict[str, Any]) -> Proof:
    return prove(diary, accounts, lines_of(diary))


def ledger(trained: int, pending: int = 0, dead: dict[str, int] | None = None, **dropped: int) -> dict[str, Any]:
    return {"trained": trained, "dropped": dropped, "dead": dead or {}, "pending": pending}


def test_every_place_trained_or_dropped_for_good_is_a_proof() -> None:
    diary = [START, {"fed": 2}, *drop("1/0", "no_variance"), *drop("2/0", "stale", "2/1"), step(1, "0/0", "2/1")]
    proof = proved(diary + UPDATE, ledger(2, no_variance=1, stale=1))
    assert proof.holds and (proof.num_steps, proof.num_trained) == (1, 2), proof


def test_a_life_undoes_the_steps_after_its_checkpoint() -> None:
    diary = [START, step(1, "0/0"), step(2, "1/0"), {"goes_on_from": 1}, step(2, "1/0"), step(3, "2/0")]
    assert history(diary) == {1: ["0/0"], 2: ["1/0"], 3: ["2/0"]}
    assert proved(diary, ledger(3)).holds
    undone = [START, step(1, "0/0"), step(2, "1/0"), {"goes_on_from": 1}, step(2, "2/0")]
    assert proved(undone, ledger(2)).lost == (1,)


def test_a_place_is_not_closed_by_anothers_drop() -> None:
    """As many drops as untrained places, but the one was fed again: the other is nowhere."""
    diary = [START, *drop("1/0", "unscored", "1/1"), step(1, "0/0", "1/1", "3/0")]
    proof = proved(diary, ledger(3, unscored=1))
    assert proof.lost == (2,) and not proof.holds


@pytest.mark.parametrize("reason", ["stale", "orphan", "forgotten"])
def test_a_drop_that_has_to_feed_again_and_does_not_closes_nothing(reason: str) -> None:
    diary = [START, *drop("0/0", reason), step(1, "1/0")]
    assert proved(diary, ledger(1, **{reason: 1})).lost == (0,)


def test_a_dead_place_is_a_lost_one() -> None:
    """No prompt of these runs can kill a server: what is dead has died of a fault that nobody counted right."""
    proof = proved([START, step(1, "0/0", "3/0")], ledger(2, dead={"max_deliveries": 2}))
    assert proof.lost == (1, 2) and not proof.holds
    proof = proved([START, step(1, "0/0", "1/0")], ledger(2, dead={"max_deliveries": 1}))
    assert proof.lost == () and proof.miscounted == ("dead by the accounts: {'max_deliveries': 1}",)


def test_a_place_that_was_fed_last_and_never_seen_again_is_lost() -> None:
    assert proved([START, {"fed": 0}, {"fed": 1}, step(1, "0/0")], ledger(1)).lost == (1,)


def test_a_place_in_two_steps_was_trained_twice_whatever_its_attempt() -> None:
    assert proved([START, step(1, "0/0"), step(2, "0/1")], ledger(2)).twice == (0,)


@pytest.mark.parametrize(
    ("accounts", "said"),
    [
        (ledger(2), "trained by the accounts: 2, by the diary: 1"),
        (ledger(1, pending=1), "pending by the accounts of a run that is over: 1"),
        (ledger(1, unscored=1), "dropped as unscored by the accounts: 1, by the diary: 0 to 0"),
    ],
)
def test_accounts_that_are_not_the_diarys_prove_nothing(accounts: dict[str, Any], said: str) -> None:
    proof = proved([START, step(1, "0/0")], accounts)
    assert proof.miscounted == (said,) and not proof.holds


def test_a_drop_without_an_answer_closes_its_place_only_if_the_accounts_know_it() -> None:
    """A learner that dies while it drops may have dropped, or not."""
    diary = [START, *drop("1/0", "no_variance", answered=False), step(1, "0/0")]
    assert [found.certain for found in drops(diary)] == [False]
    assert proved(diary, ledger(1, no_variance=1)).holds
    assert proved(diary, ledger(1)).miscounted == ("dropped as no_variance by the accounts: 0, by the diary: 1 to 1",)
    assert proved([*diary, step(2, "1/0")], ledger(2)).holds, "it had not been dropped"


def test_a_version_that_arrived_otherwise_or_was_not_compared_is_spoiled() -> None:
    wrong = [UPDATE[0], {"received": "a", "as_sent": True}, {"received": "b", "as_sent": False}, UPDATE[2]]
    unseen = [UPDATE[0], UPDATE[2]]
    for update in (wrong, unseen):
        assert proved([START, step(1, "0/0"), *update], ledger(1)).spoiled == ("1.1",)
    tried_again = [*wrong[:3], *UPDATE]
    assert proved([START, step(1, "0/0"), *tried_again], ledger(1)).spoiled == ()


@pytest.mark.parametrize(
    "own", [[], [{"step": 1, "groups": ["0/0"]}], [{"step": 1, "groups": ["1/0", "0/0"]}, {"step": 2, "groups": []}]]
)
def test_a_proof_file_that_is_not_the_diary_proves_nothing(own: list[dict[str, Any]]) -> None:
    proof = prove([START, step(1, "0/0", "1/0")], ledger(2), own)
    assert proof.broken == ["miscounted"] and "proof.jsonl" in proof.miscounted[0]


def test_a_step_that_stands_twice_in_the_proof_file_was_not_cut_back() -> None:
    diary = [START, step(1, "0/0"), START, step(1, "0/0")]
    assert proved(diary, ledger(1)).holds
    assert prove(diary, ledger(1), lines_of(diary) * 2).broken == ["miscounted"]


def test_a_step_under_way_when_the_fault_struck_is_not_the_next_one() -> None:
    diary = [{"begins": 1, "time": 1.0}, step(1, time=3.0)]
    assert seconds_to_step(diary, after=0.5) == 2.5
    assert seconds_to_step(diary, after=2.0) is None
    later = [*diary, {"begins": 2, "time": 3.5}, {"begins": 2, "time": 20.0}, step(2, time=21.0)]
    assert seconds_to_step(later, after=2.0) == 19.0, "the step that a crash cut short is begun again"


def test_the_table_has_what_was_lost_and_trained_twice_at_the_fault_before() -> None:
    killed, frozen = Fault("learner", "mid-step"), Fault("redis", "mid-step", LONG)
    campaign = Campaign(blows=[Blow(killed, 10.0, 4.0, None), Blow(frozen, 20.0, 15.0, 1.0)], ledger=ledger(4))
    steps = [step(1, "0/0", time=5.0), step(2, "2/0", time=12.0), step(3, "3/0", "0/0", time=22.0)]
    campaign.conclude([START, *steps], lines_of(steps))
    assert campaign.broken == {"lost", "twice"}
    rows = table(campaign).splitlines()[2:4]
    assert rows == [
        "| learner killed | mid-step | 1 | 4.0 | 4.0 |  | 1 | 0 |",
        "| redis frozen for 14 s | mid-step | 1 | 15.0 | 15.0 | 1.0 | 0 | 1 |",
    ]
