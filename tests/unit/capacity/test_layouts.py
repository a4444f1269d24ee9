"""Which layouts `mmr1 plan` considers: those that leave the step as large as it is, as far as ranks allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmr1.capacity.layouts import layouts, recommended
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
    chosen = recommended(found)
    assert chosen is not None and chosen.fits
