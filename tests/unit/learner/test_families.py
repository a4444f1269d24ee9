"""Every family that the learner accepts, small and with random weights: loaded, packed, scored and perturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from mmr1_learner import tiny_model
from mmr1_learner.model import SUPPORTED_FAMILIES, PromptEncoder, load_policy
from mmr1_learner.parity import perturbed
from mmr1_learner.rows import Row, pack
from tests.models import small_config
from tests.unit.learner.test_rows import PLACEHOLDER, TEXT, completion, picture, separate_rows

TEXT_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
    "tie_word_embeddings": True,
    "bos_token_id": None,
}


def qwen2_vl(tokens: dict[str, Any], text: dict[str, Any]) -> Any:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **tokens))


def qwen3_vl(tokens: dict[str, Any], text: dict[str, Any]) -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = {**text, "head_dim": 16}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **tokens))


def build(family: str, folder: Path) -> None:
    """A model folder of `family`, with the project's own tokenizer and the family's patches."""
    tokenizer = tiny_model.build_tokenizer([tiny_model.QUESTION])
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    tokens: dict[str, Any] = {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    tokens |= {"tie_word_embeddings": True, "dtype": "float32"}
    text = {**TEXT_CONFIG, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": 2}
    torch.manual_seed(0)
    if family == "qwen2_5_vl":
        model: Any = tiny_model.build_model(tokenizer, 0)
        assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
    else:
        model = {"qwen2_vl": qwen2_vl, "qwen3_vl": qwen3_vl}[family](tokens, text)
    patch = 16 if family == "qwen3_vl" else 14
    processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=224 * 224, patch_size=patch)
    tiny_model.save(folder, model, tokenizer, processor, [])


@pytest.fixture(scope="module", params=SUPPORTED_FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, folder)
    config = small_config(folder)
    policy = load_policy(str(folder), config).eval()
    assert policy.hf.config.model_type == request.param
    return policy, PromptEncoder(folder, policy, config)


def rows(encoder: PromptEncoder) -> list[Row]:
    images = [[picture(0, 84, 56)], [], [picture(1, 56, 112), picture(2, 84, 84)]]
    texts = [TEXT.format(images=PLACEHOLDER * len(pictures)) for pictures in images]
    completions = tuple(completion(tuple(range(20 + i, 20 + i + length))) for i, length in enumerate((3, 1, 5)))
    return [
        Row(encoder.encode(text, pictures), completions, 0.9, encoder.forbidden_token_ids)
        for text, pictures in zip(texts, images, strict=True)
    ]


def test_rows_equal_separate_rows(family: Any) -> None:
    policy, encoder = family
    batch = rows(encoder)
    with torch.no_grad():
        together = policy(pack(batch, encoder.image_token_id, encoder.pad_token_id)).logprobs
        plain = torch.cat([logprobs for row in batch for logprobs in separate_rows(policy, encoder, row)])
    torch.testing.assert_close(together, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower", ["visual", "language_model"])
def test_a_planted_change_of_either_tower_moves_logprobs_and_is_taken_back(family: Any, tower: str) -> None:
    policy, encoder = family
    batch = pack(rows(encoder)[:1], encoder.image_token_id, encoder.pad_token_id)
    with torch.no_grad():
        before = policy(batch).logprobs
        with perturbed(policy, tower) as name:
            seen = policy(batch).logprobs
        after = policy(batch).logprobs
    assert f"{tower}." in name and ".0.mlp." in name and dict(policy.hf.named_parameters())[name].ndim == 2
    assert (seen - before).abs().mean() > 1e-6
    assert torch.equal(before, after)
