"""Which layouts `mmr1 plan` considers: those that leave the step as large as it is, as far as ranks allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmr1.capacity.layouts import Layout, layouts, recommended
from mmr1.capacity.measured import GPUS
from mmr1.capacity.shapes import read_shape
from mmr1.capacity.work import work_of
from mmr1.config.plan_options import PlanConfig


@pytest.mark.parametrize(("gpus", "prompts", "most"), [(4, 24, 30), (4, 8, 10), (4, 1, 1), (64, 32, 40), (40, 8, 10)])
def test_the_step_stays_about_as_large_as_it_is(
    planned: Callable[..., PlanConfig], model: Path, gpus: int, prompts: int, most: int
) -> None:
    config = planned(f"--gpus={gpus}", f"--prompts={prompts}")
    found = layouts(config, work_of(config, read_shape("3b", model), model), GPUS["h200"])
    assert found and all(prompts <= layout.prompts_per_step <= most for layout in found)
    chosen = recommended(found, prompts)
    assert chosen is not None and chosen.fits


def test_a_step_of_another_size_must_be_clearly_better(planned: Callable[..., PlanConfig], model: Path) -> None:
    """Five ranks would take 40 prompts a step, and about as long for them as four take for 32."""
    config = planned("--gpus=8", "--prompts=32")
    found = layouts(config, work_of(config, read_shape("3b", model), model), GPUS["h200"])
    fitting = [layout for layout in found if layout.fits]
    quickest = min(fitting, key=lambda one: one.seconds_per_prompt)
    keeping = min(
        (one for one in fitting if one.prompts_per_step == 32),
        key=lambda one: (one.learner.zero_stage, one.step_seconds),
    )
    assert quickest.prompts_per_step != 32
    (slow, fast) = (replace(keeping, update_seconds=0.0), replace(quickest, update_seconds=0.0))
    assert recommended([slow, fast], 32) is slow
    assert recommended([replace(slow, update_seconds=slow.step_seconds), fast], 32) is fast
    assert recommended([fast], 32) is fast


def test_ranks_that_fill_machines_are_preferred(planned: Callable[..., PlanConfig], model: Path) -> None:
    """And no server lies on two machines."""
    config = planned("--gpus=12")
    found = layouts(config, work_of(config, read_shape("3b", model), model), GPUS["h200"])
    assert all(one.learner.num_ranks % one.rollout.tensor_parallel_size == 0 for one in found)
    whole, split = (
        next(one for one in found if one.fits and (one.learner.num_ranks, one.prompts_per_step) == (ranks, 32))
        for ranks in (8, 4)
    )

    def taking(layout: Layout, seconds: float) -> Layout:
        return replace(layout, update_seconds=layout.update_seconds + seconds - layout.step_seconds)

    barely, clearly = taking(split, 0.9), taking(split, 0.8)
    assert recommended([taking(whole, 1.0), barely], 32) is not barely
    assert recommended([taking(whole, 1.0), clearly], 32) is clearly
    assert recommended([taking(whole, 1.0), barely], 32, per_node=16) is barely
