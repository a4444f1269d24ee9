"""Groups that a lost life of the learner has had sampled: trained as they are, or dropped and sampled anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmr1.records import Group, PolicyVersion
from mmr1_learner.source import ORPHAN, is_orphan
from tests.conftest import make_group, make_prompt
from tests.unit.learner.run_of_a_test import PER_STEP, STEPS, Learner, Run, places

LONG_RUN_STEPS = 8


def crashed_run(url: str, folder: Path, choice: str) -> Run:
    """A checkpoint of step 1, and two groups that were sampled by the version of step 2, which nobody has any more."""
    run = Run(url, folder, orphan_groups=choice)
    first = run.learner()
    first.collect()
    first.save()
    first.collect()
    run.serve()
    assert first.queue.ledger().num_groups == 2 * PER_STEP
    return run


def test_by_default_orphans_are_trained_with_the_lag_counted_in_steps(redis_url: str, tmp_path: Path) -> None:
    run = crashed_run(redis_url, tmp_path, "reuse")
    second = run.learner()
    collected = second.source.collect(second.version, lambda: None)
    assert [group.oldest_version for group in collected.groups] == [(1, 0), (1, 0)], "what led to the checkpoint"
    assert collected.lags == [1, 1]
    collected = second.source.collect(second.version, lambda: None)
    assert [group.oldest_version for group in collected.groups] == [(1, 2), (1, 2)], "a version of the lost life"
    assert collected.lags == [1, 1], "the checkpoint's 1 and the lost 2 are one step apart"
    assert not collected.dropped


def test_reused_orphans_have_no_bound_of_lag(redis_url: str, tmp_path: Path) -> None:
    """The learner lost more steps than max_off_policy_steps: all their groups are trained, none is called stale."""
    run = Run(redis_url, tmp_path)
    first = run.learner()
    for _ in range(STEPS):
        first.collect()
    second = run.learner()
    second.finish()
    assert second.queue.ledger().trained == STEPS * PER_STEP
    assert not second.queue.ledger().dropped
    assert places(run) == list(range(STEPS * PER_STEP))


def test_refeed_drops_orphans_with_a_reason_and_samples_their_places_anew(redis_url: str, tmp_path: Path) -> None:
    run = crashed_run(redis_url, tmp_path, "refeed")
    second = run.learner()
    second.finish()
    ledger = second.queue.ledger()
    assert ledger.dropped == {ORPHAN: PER_STEP}
    assert ledger.trained == STEPS * PER_STEP
    assert places(run) == list(range(STEPS * PER_STEP))
    assert {id_.position: id_.attempt for id_ in run.trained} == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1}


def long_run(url: str, folder: Path) -> Run:
    """All but one step of it were done, and none is in a checkpoint: most of their groups are orphans."""
    run = Run(url, folder, orphan_groups="refeed")
    run.config = run.config.model_copy(update={"num_steps": LONG_RUN_STEPS})
    first = run.learner()
    while first.step < LONG_RUN_STEPS - 1:
        first.collect()
    return run


def test_many_orphans_are_fed_again_within_the_bound_and_nothing_becomes_stale(redis_url: str, tmp_path: Path) -> None:
    run = long_run(redis_url, tmp_path)
    second, largest = run.learner(), 0

    def serve() -> None:
        nonlocal largest
        largest = max(largest, second.queue.ledger().num_prompts)
        run.serve()

    while second.step < LONG_RUN_STEPS:
        assert len(second.collect(serve)) == PER_STEP
    second.save()
    ledger = second.queue.ledger()
    assert ledger.balanced and ledger.pending == 0
    assert ledger.dropped.keys() == {ORPHAN}, "none of those that were fed again waited until it was stale"
    assert places(run) == list(range(LONG_RUN_STEPS * PER_STEP))
    assert 0 < largest <= (run.config.max_off_policy_steps + 1) * PER_STEP


def test_a_crash_while_orphans_wait_to_be_fed_again_loses_none(redis_url: str, tmp_path: Path) -> None:
    run = long_run(redis_url, tmp_path)
    second = run.learner()
    for _ in range(3):
        second.collect()
    fed_again = second.queue.ledger().dropped[ORPHAN]
    assert 0 < fed_again < (LONG_RUN_STEPS - 4) * PER_STEP, "some wait still"
    third = run.learner()
    while third.step < LONG_RUN_STEPS:
        third.collect()
    third.save()
    assert third.queue.ledger().balanced and third.queue.ledger().pending == 0
    assert places(run) == list(range(LONG_RUN_STEPS * PER_STEP))


def lineage_of(run: Run) -> dict[int, int]:
    found = run.checkpoints.newest()
    assert found is not None
    return dict(found[1].lineage)


def test_a_checkpoint_knows_which_versions_led_to_it(redis_url: str, tmp_path: Path) -> None:
    run = Run(redis_url, tmp_path)

    def step(learner: Learner, save: bool) -> Learner:
        learner.collect()
        if save:
            learner.save()
        return learner

    step(step(run.learner(), save=True), save=False)  # 1.1 is kept, 1.2 lost
    step(run.learner(), save=False)  # 2.2 is lost
    step(run.learner(), save=True)  # 3.2
    lineage = lineage_of(run)
    assert lineage == {1: 1, 3: 2}
    learner = PolicyVersion(4, 2)
    for sampled, orphan in {(1, 0): False, (1, 1): False, (1, 2): True, (2, 1): False, (2, 2): True}.items():
        assert is_orphan(versioned(sampled), learner, lineage) == orphan, sampled
    for sampled in ((3, 1), (3, 2), (4, 1), (4, 2)):
        assert not is_orphan(versioned(sampled), learner, lineage), sampled


def versioned(version: tuple[int, int]) -> Group:
    group = make_group(make_prompt())
    spans = tuple(span._replace(version=PolicyVersion(*version)) for span in group.rollouts[0].spans)
    return replace(group, rollouts=(group.rollouts[0], replace(group.rollouts[1], spans=spans)))
