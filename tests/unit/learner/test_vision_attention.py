"""Attention by length of window gives what transformers' own window by window does: values, gradients, and no trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from mmr1_learner import vision_attention
from mmr1_learner.vision_attention import batch_vision_attention

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}
WINDOWED = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
    "window_size": 56,
    "patch_size": 14,
}
# [images, 3] frames, and patches down and across: alone, of one size, of several, with windows cut at the edges.
GRIDS = {
    "one": [[1, 8, 8]],
    "equal": [[1, 8, 8]] * 3,
    "mixed": [[1, 4, 4], [1, 8, 12], [1, 6, 10], [1, 4, 4]],
    "film": [[3, 8, 6]],
}


def qwen2_5() -> Any:
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=TEXT, vision_config=WINDOWED))


def qwen2() -> Any:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=TEXT, vision_config=vision))


def qwen3() -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 14,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=TEXT | {"head_dim": 16}, vision_config=vision))


def see(model: Any, grid: list[list[int]]) -> tuple[Tensor, list[Tensor]]:
    """The tower's output for seeded patches, and the gradients of a seeded weighting of it."""
    sizes = torch.tensor(grid)
    generator = torch.Generator().manual_seed(0)
    tower = model.model.visual
    width = tower.patch_embed.proj.weight[0].numel()
    patches = torch.randn(int(sizes.prod(1).sum()), width, generator=generator)
    model.zero_grad()
    seen = tower(patches, grid_thw=sizes).pooler_output
    (seen * torch.randn(seen.shape, generator=generator)).sum().backward()
    return seen.detach(), [p.grad.clone() for p in tower.parameters() if p.grad is not None]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("make", [qwen2_5, qwen2, qwen3])
def test_values_and_gradients_are_transformers_own(make: Callable[[], Any], grid: str) -> None:
    torch.manual_seed(0)
    model = make()
    before, gradients = see(model, GRIDS[grid])
    batch_vision_attention(model)
    after, now = see(model, GRIDS[grid])
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert len(now) == len(gradients) > 0
    for ours, theirs in zip(now, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_layer_calls_once_for_each_length_and_the_boundaries_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, read = [], []
    attend, group = vision_attention.F.scaled_dot_product_attention, vision_attention._make_groups
    monkeypatch.setattr(
        vision_attention.F,
        "scaled_dot_product_attention",
        lambda q, *rest, **options: (calls.append(q.shape[:1] + q.shape[2:3]), attend(q, *rest, **options))[1],
    )
    monkeypatch.setattr(
        vision_attention, "_make_groups", lambda ends, where: (read.append(ends), group(ends, where))[1]
    )
    model = qwen2_5()
    batch_vision_attention(model)
    see(model, [[1, 8, 8], [1, 8, 8]])
    # Windows of 4 x 4 patches in the first and third layers, images of 64 in the second.
    assert calls == [(8, 16), (2, 64), (8, 16)]
    assert len(read) == 2


def test_a_saved_model_does_not_know_of_it(tmp_path: Path) -> None:
    model = qwen2_5()
    batch_vision_attention(model)
    model.save_pretrained(tmp_path)
    assert "flash" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).config.vision_config._attn_implementation == "sdpa"


def test_a_tower_of_another_kind_stays_as_it_is() -> None:
    class Other(nn.Module):
        config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=WINDOWED)

    other = Other()
    other.config.model_type = "llava"
    before = other.config.vision_config._attn_implementation
    batch_vision_attention(other)
    assert other.config.vision_config._attn_implementation == before


def test_boundaries_of_the_host_are_read_there_and_what_they_mean_is_where_the_tokens_are() -> None:
    """Meta stands for a GPU: what is there cannot be read."""
    boundaries = torch.tensor([0, 4, 12, 16], dtype=torch.int32)
    windows, order = vision_attention.windows_of(boundaries, torch.device("meta"))
    assert [(one.num, one.length) for one in windows] == [(2, 4), (1, 8)]
    assert order is not None and order.device.type == "meta"
    assert all(one.rows is not None and one.rows.device.type == "meta" for one in windows)
