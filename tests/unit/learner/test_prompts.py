"""What a run says when a prompt can no longer be made, or its images no longer be opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1.records import Problem, PromptId
from mmr1_learner.batches import Batcher
from mmr1_learner.plan import Sample, StepPlan
from mmr1_learner.prompts import PromptFactory
from tests.conftest import make_group, make_prompt
from tests.models import small_config


def test_an_image_that_is_gone_when_a_prompt_is_fed_is_named_with_the_remedy(small_model: Path, tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    config = small_config(small_model, image_root=str(tmp_path))
    factory = PromptFactory(config, [Problem(0, "How many?", 1, ("a.png",), "counting")], ())
    factory.training(PromptId("run", 0))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ConfigurationError, match=r"image a\.png: does not exist below .*; restore it"):
        factory.training(PromptId("run", 1))


def test_an_image_that_changes_before_a_rank_encodes_it_is_named_with_the_remedy(tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    prompt = replace(make_prompt(0), images=(ImageStore(tmp_path).ref("a.png"),))
    plan = StepPlan(0, (make_group(prompt, (1.0, 0.0)),))
    config = small_config(tmp_path, image_root=str(tmp_path))
    batcher = Batcher(config, Mock())
    forward = (Mock(spec=Sample, group=0),)
    assert set(batcher.encode(plan, [forward])) == {0}
    Image.new("L", (56, 56)).save(tmp_path / "a.png")
    with pytest.raises(ConfigurationError, match=r"image a\.png: .*; restore it, and the same command goes on"):
        batcher.encode(plan, [forward])


def test_a_later_attempt_asks_the_same_in_a_longer_run(small_model: Path, tmp_path: Path) -> None:
    """A place that Redis has forgotten is fed again as it was, also where num_steps has changed in between."""
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    problems = [Problem(index, f"How many {index}?", 1, ("a.png",), "counting") for index in range(50)]
    asked = []
    for num_steps in (4, 9):
        config = small_config(small_model, image_root=str(tmp_path), dynamic_sampling=True, num_steps=num_steps)
        factory = PromptFactory(config, problems, ())
        asked.append([factory.training(PromptId("run", 3, attempt)).problem for attempt in range(6)])
    assert asked[0] == asked[1]
    assert len(set(asked[0])) > 3, "each attempt asks something else"
