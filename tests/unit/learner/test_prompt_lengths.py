"""A prompt that is too long is found among many, by its image or by its text, before anything is sampled."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.records import Problem
from mmr1_learner.model import PromptEncoder
from mmr1_learner.prompt_lengths import check_prompt_lengths
from mmr1_learner.prompts import PromptFactory
from tests.models import small_config, small_policy


def problem(text: str, *images: str) -> Problem:
    return Problem(0, text, 1, images, "counting")


@pytest.fixture(scope="module")
def encoder(small_model: Path) -> PromptEncoder:
    return PromptEncoder(str(small_model), small_policy(small_model), small_config(small_model))


@pytest.fixture
def problems(tmp_path: Path) -> list[Problem]:
    Image.new("RGB", (56, 56)).save(tmp_path / "small.png")
    Image.new("RGB", (560, 560)).save(tmp_path / "large.png")
    return [problem("How many?", "small.png") for _ in range(50)]


def check(encoder: PromptEncoder, small_model: Path, root: Path, problems: list[Problem], limit: int = 64) -> None:
    config: RunConfig = small_config(small_model, train_file=root / "train.json", max_prompt_length=limit)
    check_prompt_lengths(config, encoder, PromptFactory(config, problems, ()), problems)


def test_prompts_that_fit_pass(
    encoder: PromptEncoder, small_model: Path, tmp_path: Path, problems: list[Problem]
) -> None:
    check(encoder, small_model, tmp_path, problems)


def test_the_one_large_image_is_found(
    encoder: PromptEncoder, small_model: Path, tmp_path: Path, problems: list[Problem]
) -> None:
    problems[17] = problem("How many?", "large.png")
    with pytest.raises(
        ConfigurationError, match=r"560 x 560 pixels has \d+ tokens, above max_prompt_length 64; .*max_pixels"
    ):
        check(encoder, small_model, tmp_path, problems)
    check(encoder, small_model, tmp_path, problems, limit=512)


def test_the_one_long_text_is_found(
    encoder: PromptEncoder, small_model: Path, tmp_path: Path, problems: list[Problem]
) -> None:
    problems[17] = problem("How many? " * 100)
    with pytest.raises(ConfigurationError, match=r"the prompt of 'How many\? .*' has \d+ tokens.*; raise it$"):
        check(encoder, small_model, tmp_path, problems)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "small.png: does not exist below"),
        (b"no image", r"small.png: is not one of PNG"),
        ("cut", r"small.png: is cut short \(\d+ bytes\); restore the complete file"),
    ],
)
def test_an_image_that_has_gone_bad_since_it_was_checked_is_named(
    content: bytes | str | None,
    reason: str,
    encoder: PromptEncoder,
    small_model: Path,
    tmp_path: Path,
    problems: list[Problem],
) -> None:
    """After the check of the whole dataset, and before anything is sampled."""
    path = tmp_path / "small.png"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError, match=f"image {reason}.*; restore it, and the same command goes on"):
        check(encoder, small_model, tmp_path, problems)


def test_no_more_images_are_measured_than_asked_and_every_text(
    encoder: PromptEncoder, small_model: Path, tmp_path: Path, problems: list[Problem]
) -> None:
    problems[17] = problem("How many?", "large.png")

    def check_some(image_checks: int) -> None:
        options = {"train_file": tmp_path / "train.json", "max_prompt_length": 64, "image_checks": image_checks}
        config: RunConfig = small_config(small_model, **options)
        check_prompt_lengths(config, encoder, PromptFactory(config, problems, ()), problems)

    check_some(10)  # every fifth
    with pytest.raises(ConfigurationError, match="560 x 560"):
        check_some(50)
    problems[18] = problem("How many? " * 100)
    with pytest.raises(ConfigurationError, match="raise it"):
        check_some(0)
