"""Every family that the learner knows, small and with random weights: loaded, packed, scored and perturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from structlog.testing import capture_logs

from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES
from mmr1_learner.model import PromptEncoder, load_policy
from mmr1_learner.parity import perturbed, towers
from mmr1_learner.rows import Row, pack
from tests.family_models import build, prompt_text
from tests.models import small_config
from tests.unit.learner.test_rows import completion, picture, separate_rows


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' processor of a SmolVLM wants it")
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, folder)
    config = small_config(folder)
    policy = load_policy(str(folder), config).eval()
    assert policy.hf.config.model_type == request.param
    return policy, PromptEncoder(folder, policy, config), folder


def rows(family: str, encoder: PromptEncoder) -> list[Row]:
    """Prompts without an image, with one, and with two of different sizes, some cut into tiles."""
    images = [[picture(0, 84, 56)], [], [picture(1, 56, 112), picture(2, 120, 84)], []]
    completions = tuple(completion(tuple(range(20 + i, 20 + i + length))) for i, length in enumerate((3, 1, 5)))
    return [
        Row(encoder.encode(prompt_text(family, len(pictures)), pictures), completions, 0.9, encoder.forbidden_token_ids)
        for pictures in images
    ]


def test_rows_equal_separate_rows(family: Any) -> None:
    policy, encoder, _ = family
    batch = rows(policy.hf.config.model_type, encoder)
    assert [len(row.prompt.images) > 0 for row in batch] == [True, False, True, False]
    packed = pack(batch, encoder.image_token_id, encoder.pad_token_id)
    assert packed.calls[0].input_ids.shape[0] < len(batch), "the prompts without an image share a row"
    with torch.no_grad():
        together = policy(packed).logprobs
        plain = torch.cat([logprobs for row in batch for logprobs in separate_rows(policy, encoder, row)])
    torch.testing.assert_close(together, plain, atol=1e-5, rtol=0)


def test_images_count(family: Any) -> None:
    """Another image of the same size gives other log-probabilities: placeholders do receive the image's features."""
    policy, encoder, _ = family
    row = rows(policy.hf.config.model_type, encoder)[2]
    swapped = encoder.encode(prompt_text(policy.hf.config.model_type, 2), [picture(7, 56, 112), picture(2, 120, 84)])
    assert swapped.token_ids == row.prompt.token_ids
    with torch.no_grad():
        one, other = (
            policy(pack([replace(row, prompt=prompt)], encoder.image_token_id, encoder.pad_token_id)).logprobs
            for prompt in (row.prompt, swapped)
        )
    assert (one - other).abs().max() > 1e-5


@pytest.fixture
def nobody_known() -> Iterator[Callable[[], None]]:
    """Makes the learner forget all families; afterwards it knows them again, in their order."""
    with mock.patch.dict(FAMILIES):
        yield FAMILIES.clear


def test_a_family_that_is_not_known_is_scored_in_padded_rows(family: Any, nobody_known: Callable[[], None]) -> None:
    policy, encoder, folder = family
    name = policy.hf.config.model_type
    known = rows(name, encoder)
    nobody_known()
    with capture_logs() as logs:
        stranger = load_policy(str(folder), small_config(folder)).eval()
    assert [entry["family"] for entry in logs if "padded row" in entry["event"]] == [name]
    unknown = rows(name, PromptEncoder(folder, stranger, small_config(folder)))
    padded = pack(unknown, encoder.image_token_id, encoder.pad_token_id)
    assert [call.input_ids.shape[0] for call in padded.calls] == [3, 3, 3, 3], "a row for each completion"
    shown_again = [name for call in padded.calls for name, t in call.token_types.items() if 0 in t.stride()]
    assert not shown_again, "memory that stands for several rows cannot be copied to where a GPU reads"
    with torch.no_grad():
        expected = policy(pack(known, encoder.image_token_id, encoder.pad_token_id))
        found = stranger(padded)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-5, rtol=0)
    assert {"language", "text"} & {tower.split("_")[0] for tower in towers(stranger)}


@pytest.mark.parametrize("tower", [0, 1])
def test_a_planted_change_of_either_tower_moves_logprobs_and_is_taken_back(family: Any, tower: int) -> None:
    policy, encoder, _ = family
    batch = pack(rows(policy.hf.config.model_type, encoder)[:1], encoder.image_token_id, encoder.pad_token_id)
    part = towers(policy)[tower]
    with torch.no_grad():
        before = policy(batch).logprobs
        with perturbed(policy, part) as name:
            seen = policy(batch).logprobs
        after = policy(batch).logprobs
    assert f"{part}." in name and ".0.mlp." in name and dict(policy.hf.named_parameters())[name].ndim == 2
    assert (seen - before).abs().mean() > 1e-6
    assert torch.equal(before, after)


def test_bounds_of_pixels_are_refused_where_the_processor_has_none(family: Any) -> None:
    policy, encoder, folder = family
    config = small_config(folder, max_pixels=112 * 112)
    if FAMILIES[policy.hf.config.model_type].takes_pixel_bounds:
        large = PromptEncoder(folder, policy, config).encode(prompt_text("qwen2_vl", 1), [picture(0, 224, 224)])
        patch_size = encoder.processor.image_processor.patch_size
        assert large.images["image_grid_thw"].prod() * patch_size**2 <= 112 * 112
    else:
        with pytest.raises(ConfigurationError, match=r"option 'max_pixels'.* has no bounds of pixels"):
            PromptEncoder(folder, policy, config)


def test_a_processor_that_does_not_load_is_a_configuration_error(tmp_path: Path, small_model: Path) -> None:
    policy = load_policy(str(small_model), small_config(small_model))
    with pytest.raises(ConfigurationError, match="processor of model"):
        PromptEncoder(tmp_path, policy, small_config(small_model))


def test_names_of_tensors_are_those_of_published_folders(tmp_path: Path) -> None:
    """Of a LLaVA: transformers loads the published names, but has others itself, and the server knows the published."""
    build("llava", tmp_path)
    names = {name for name, _ in load_policy(str(tmp_path), small_config(tmp_path)).named_tensors()}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = {name for name in file.keys() if "vision_tower" in name}  # noqa: SIM118 - it is no mapping
    assert {name.removeprefix("model.") for name in names if "vision_tower" in name} == stored
