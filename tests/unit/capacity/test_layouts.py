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


def taking(layout: Layout, seconds: float, prompts: int = 1) -> Layout:
    """The layout as if a step took so many seconds for each of `prompts`."""
    alone = replace(layout, beside=False)
    return replace(alone, update_seconds=layout.update_seconds + seconds * prompts - alone.step_seconds)


def test_a_step_of_another_size_must_be_clearly_better(planned: Callable[..., PlanConfig], model: Path) -> None:
    """Five ranks would take 40 prompts a step where 32 are asked for."""
    config = planned("--gpus=8", "--prompts=32")
    found = layouts(config, work_of(config, read_shape("3b", model), model), GPUS["h200"])
    kept, other = (
        next(one for one in found if one.fits and (one.learner.num_ranks, one.prompts_per_step) == as_asked)
        for as_asked in ((4, 32), (5, 40))
    )
    keeping = taking(kept, 0.1, 32)
    assert recommended([keeping, taking(other, 0.08, 40)], 32) is keeping
    clearly = taking(other, 0.06, 40)
    assert recommended([keeping, clearly], 32) is clearly
    assert recommended([other], 32) is other


def test_ranks_that_fill_machines_are_preferred(planned: Callable[..., PlanConfig], model: Path) -> None:
    """And no server lies on two machines."""
    config = planned("--gpus=12")
    found = layouts(config, work_of(config, read_shape("3b", model), model), GPUS["h200"])
    assert all(one.learner.num_ranks % one.rollout.tensor_parallel_size == 0 for one in found)
    whole, split = (
        next(one for one in found if one.fits and (one.learner.num_ranks, one.prompts_per_step) == (ranks, 32))
        for ranks in (8, 4)
    )

    barely, clearly = taking(split, 0.9), taking(split, 0.8)
    assert recommended([taking(whole, 1.0), barely], 32) is not barely
    assert recommended([taking(whole, 1.0), clearly], 32) is clearly
    assert recommended([taking(whole, 1.0), barely], 32, per_node=16) is barely


def test_what_fits_a_gpu_fits_a_larger_one(planned: Callable[..., PlanConfig], model: Path) -> None:
    config = planned("--gpus=2", "--prompts=8")
    work = work_of(config, read_shape("3b", model), model)
    fits = [
        any(layout.fits for layout in layouts(config, work, replace(GPUS["h200"], memory_gib=memory)))
        for memory in range(70, 140, 2)
    ]
    assert fits == sorted(fits) and len(set(fits)) == 2
