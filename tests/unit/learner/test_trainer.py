"""A step's work is cut so that every rank does as many forwards as the others, and every sample counts once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmr1.records import Outcome, PolicyVersion, Score
from mmr1_learner.plan import StepPlan, cut
from tests.models import small_config
from tests.unit.learner.ranks_of_a_test import groups_with_images


def test_every_rank_runs_the_same_number_of_forwards_and_weights_add_up(tmp_path: Path, small_model: Path) -> None:
    groups = groups_with_images(tmp_path, [56] * 5)
    unscored = replace(groups[0].rollouts[0], score=Score(Outcome.TIMEOUT, None))
    groups[0] = replace(groups[0], rollouts=(unscored, *groups[0].rollouts[1:]))
    config = small_config(small_model, per_device_batch_size=3, gradient_accumulation_steps=4)
    plan = StepPlan(0, tuple(groups))
    for world_size in (1, 2, 3, 7):
        forwards = cut(plan, config, world_size)
        assert len({len(updates[0]) for updates in forwards}) == 1
        samples = [sample for updates in forwards for forward in updates[0] for sample in forward]
        assert all(len(forward) <= 3 for updates in forwards for forward in updates[0])
        live = [sample for sample in samples if sample.weight]
        assert len(live) == 19, "the unscored sample takes no part"
        total = sum(s.weight * len(groups[s.group].rollouts[s.rollout].token_ids) for s in live)
        assert total == pytest.approx(1.0)


def test_a_plan_survives_the_way_to_the_other_ranks(tmp_path: Path) -> None:
    plan = StepPlan(3, tuple(groups_with_images(tmp_path, [56, 56])), version=PolicyVersion(2, 5))
    assert StepPlan.decode(plan.encode()) == plan
    assert StepPlan.decode(StepPlan(4, (), stop=True).encode()).stop
