"""What a prompt is asked with, and what a run says when one can no longer be made, or its images be opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1.records import Problem, PromptId, RewardSpec, Sampling
from mmr1_learner.batches import Batcher
from mmr1_learner.plan import Sample, StepPlan
from mmr1_learner.prompts import PromptFactory
from tests.conftest import make_group, make_prompt
from tests.models import small_config

PROBLEMS = [Problem(index, f"Question {index}?", index, (), "counting") for index in range(9)]


def factory(model: Path, **options: Any) -> PromptFactory:
    return PromptFactory(small_config(model, **options), PROBLEMS, (1, 5))


def test_a_place_is_sampled_at_the_temperature_of_its_step(small_model: Path) -> None:
    """Two places a step, whatever the attempt; constant, each of them at the one temperature."""
    linear = {"temperature_func": "linear", "temperature_begin": 0.6, "temperature_end": 1.2, "num_steps": 4}
    prompts = factory(small_model, **linear)
    asked = [prompts.training(PromptId("run", place, place % 2)).sampling.temperature for place in range(8)]
    assert asked == pytest.approx([0.6, 0.6, 0.8, 0.8, 1.0, 1.0, 1.2, 1.2])
    constant = factory(small_model, temperature=0.7)
    assert {constant.training(PromptId("run", place)).sampling.temperature for place in range(8)} == {0.7}


def test_a_prompt_carries_how_it_is_sampled_and_scored(small_model: Path) -> None:
    options = {"stop": ["\n", "END"], "max_completion_length": 12, "temperature": 0.7}
    scored = {"rewards": ["counting=1.5", "format"], "num_generations": 2}
    prompts = factory(small_model, **options, **scored)
    prompt = prompts.training(PromptId("run", 3))
    expected = Sampling(0.7, 12, 1.0, prompt.sampling.seed, (1, 5), ("\n", "END"))
    assert prompt.sampling == expected
    assert prompts.sampling(0.0, None) == replace(expected, temperature=0.0, seed=None), "greedy"
    assert prompt.rewards == (RewardSpec("counting", 1.5), RewardSpec("format", 1.0)) and prompt.num_generations == 2


def test_a_prompt_is_scored_by_its_own_rows_task(small_model: Path) -> None:
    mixed = [Problem(0, "How many?", 3, (), "counting"), Problem(1, "Where?", [1, 2, 3, 4], (), "grounding")]
    options: dict[str, Any] = {"rewards": ["task", "format=0.2"], "reward_params": {"grounding": {"score": "iou"}}}
    config = small_config(small_model, **options, task_weights={"counting": 1, "grounding": 3})
    prompts = [PromptFactory(config, mixed, ()).training(PromptId("run", place)) for place in range(8)]
    assert [prompt.task for prompt in prompts].count("grounding") == 6
    own = {"counting": RewardSpec("counting", 1.0), "grounding": RewardSpec("grounding", 1.0, {"score": "iou"})}
    assert all(prompt.rewards == (own[prompt.task], RewardSpec("format", 0.2)) for prompt in prompts)


def test_each_attempt_at_each_place_has_a_seed_of_its_own_that_follows_from_the_runs(small_model: Path) -> None:
    ids = [PromptId("run", place, attempt) for place in range(4) for attempt in range(2)]
    (first, again, other) = (
        [factory(small_model, seed=seed).training(id_).sampling.seed for id_ in ids] for seed in (3, 3, 4)
    )
    assert first == again and len({*first, *other}) == 2 * len(ids)


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
