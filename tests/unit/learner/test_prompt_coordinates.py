"""A prompt about boxes: said in the model's coordinates, scored with the size that the real processor resized to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer

from mmr1.config.loading import load_options
from mmr1.config.sft_options import SftConfig
from mmr1.images import ImageStore
from mmr1.records import Problem, Prompt, PromptId, RewardSpec
from mmr1.wire.convert import prompt_from_message, prompt_to_message
from mmr1_learner.model import load_processor
from mmr1_learner.prompts import PromptFactory
from mmr1_learner.supervised.examples import encode_answers
from mmr1_reward_server.api import Item
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.rewards import builtin_tasks
from tests.models import small_config

SIZE = (220, 130)
BOX = [22.0, 13.0, 110.0, 117.0]
OBJECTS = [{"bbox_2d": BOX, "label": "7"}, {"bbox_2d": [110, 0, 220, 65], "label": "3"}]
REWARDS = (RewardSpec("grounding"), RewardSpec("detection", 1.0, {"score": "f1"}), RewardSpec("format", 0.2))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", SIZE, "white").save(tmp_path / "a.png")
    return tmp_path


def options(image: Path, **more: Any) -> dict[str, Any]:
    return {"train_file": str(image / "train.json"), "max_completion_length": 200, **more}


def made(model: Path, image: Path, problem: Problem, **more: Any) -> Prompt:
    factory = PromptFactory(small_config(model, **options(image, **more)), [problem], ())
    return factory.make(PromptId("run", 0), problem, factory.sampling(1.0, None), 2, REWARDS)


@pytest.mark.parametrize("bounds", [{}, {"max_pixels": 100 * 100}, {"min_pixels": 200 * 200}])
def test_a_box_in_a_question_and_the_params_go_by_the_size_of_the_real_processors_image(
    small_model: Path, image: Path, bounds: dict[str, int]
) -> None:
    problem = Problem(0, "What is in <box>[0, 0, 220, 130]</box>?", BOX, ("a.png",), "grounding")
    prompt = made(small_model, image, problem, **bounds)
    config = small_config(small_model, **options(image, **bounds))
    processor = load_processor(small_model, "qwen2_5_vl", config).image_processor
    store = ImageStore(image)
    grid = processor(images=[store.open(prompt.images[0])], return_tensors="pt")["image_grid_thw"][0].tolist()
    width, height = grid[2] * processor.patch_size, grid[1] * processor.patch_size
    assert f"What is in [0, 0, {width}, {height}]?" in prompt.text and "<box>" not in prompt.text
    told = {"response_space": "absolute", "resized_size": [width, height]}
    assert [spec.params for spec in prompt.rewards] == [told, {**told, "score": "f1"}, {}]
    assert prompt.solution == BOX and prompt.problem == problem.problem, "a dataset's boxes stay in its pixels"
    assert prompt_from_message(prompt_to_message(prompt)) == prompt


def test_what_a_model_is_taught_to_say_is_worth_all_of_the_reward(small_model: Path, image: Path) -> None:
    """From the dataset's pixels through the answer template and the real tokenizer to the reward server's own tasks."""
    arguments = [
        word for name, value in options(image, run_dir=image / "run").items() for word in (f"--{name}", str(value))
    ]
    registry = Registry(builtin_tasks())
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    encoder = SimpleNamespace(processor=SimpleNamespace(tokenizer=tokenizer))
    for task, solution, params in (
        ("grounding", BOX, {}),
        ("grounding", "[22, 13, 110, 117]", {}),
        ("detection", OBJECTS, {"score": "f1", "iou_threshold": 0.9}),
        ("detection", [], {"score": "f1"}),
    ):
        problem = Problem(0, "Where?", solution, ("a.png",), task)
        chosen = [
            "--model",
            str(small_model),
            "--answer_template",
            task,
            "--max_pixels",
            str(150 * 150),
            "--num_steps",
            "1",
        ]
        config = load_options(SftConfig, None, [*arguments, *chosen, "--per_device_batch_size", "4"])
        ((*said, end),) = encode_answers(config, encoder, [problem])  # type: ignore[arg-type]
        assert end == tokenizer.eos_token_id
        (spec,) = [
            spec for spec in made(small_model, image, problem, max_pixels=150 * 150).rewards if spec.task == task
        ]
        item = Item(
            id="1",
            task=task,
            response=tokenizer.decode(said),
            solution=solution,
            params={**spec.params, **params},
            image_size=SIZE,
        )
        verdict = registry[task].score(registry[task].read(item))
        assert verdict.components[params.get("score", "iou")] >= (0.97 if task == "grounding" else 1.0), item.response
