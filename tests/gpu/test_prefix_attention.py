"""Attention by stretch on a GPU: the kernel computes its definition, and a family's layers go to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from mmr1.families import FAMILIES
from mmr1_learner import prefix_attention
from mmr1_learner.calls import PADDING, ModelCall
from mmr1_learner.model import load_policy
from tests.family_models import build
from tests.gpu.test_kernels import CUDA, TOLERANCES, batch_of, score
from tests.models import small_config
from tests.unit.learner.attention_by_definition import attend, attend_backward
from tests.unit.learner.test_prefix_attention import lay_out

# A 3B Qwen's, a 2B's, and narrow ones.
HEADS = {"16 of 128, 2 shared": (16, 2, 128), "12 of 128, 2 shared": (12, 2, 128), "4 of 40": (4, 4, 40)}


def seen_by(layer: Any, mask: Tensor, parts: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, ...]:
    seen, _ = prefix_attention._attention(layer, *parts, mask, scaling=0.1)
    grads = torch.autograd.grad((seen.float() * weights).sum(), parts)
    return tuple(part.float() for part in (seen * (weights != 0), *grads))


# [rows of groups: the lengths of a prompt and its completions]; single tokens take another way through the kernel.
ROWS = {
    "long": [[(1039, *[64] * 8)], [(300, 64, 7, 1), (200, 33, 50)]],
    "single tokens, and a group without completions": [[(1, 1), (40,), (70, 1)], [(90, 1)]],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("heads", HEADS)
def test_the_kernel_computes_its_definition(
    heads: str, rows: str, monkeypatch: pytest.MonkeyPatch, record: Any
) -> None:
    """To bfloat16's rounding: as far from float32's as the mask's kernel is, within a factor."""
    torch.manual_seed(0)
    many, few, width = HEADS[heads]
    length = max(sum(map(sum, groups)) for groups in ROWS[rows])
    owners, segments = (part.to(CUDA) for part in lay_out(ROWS[rows], length))
    call = ModelCall(segments, owners, segments, segments, {}, {}).with_stretches()
    parts = tuple(torch.randn(2, count, length, width, device=CUDA, requires_grad=True) for count in (many, few, few))
    rounded = tuple(part.detach().bfloat16().requires_grad_() for part in parts)
    weights = torch.randn(2, length, many, width, device=CUDA) * (segments != PADDING)[:, :, None, None]
    layer = mock.Mock(num_key_value_groups=many // few, is_causal=True)
    stretches = call.arguments(torch.bfloat16, True)["attention_mask"]
    ours = seen_by(layer, stretches, rounded, weights)
    masked = seen_by(layer, call.arguments(torch.bfloat16)["attention_mask"], rounded, weights)
    whole = tuple(part.detach().float().requires_grad_() for part in rounded)
    monkeypatch.setattr(prefix_attention, "attend", attend)
    monkeypatch.setattr(prefix_attention, "attend_backward", attend_backward)
    defined = seen_by(layer, stretches, whole, weights)
    off, masked_off = (
        [
            float((part - truth).detach().norm() / truth.detach().norm())
            for part, truth in zip(found, defined, strict=True)
        ]
        for found in (ours, masked)
    )
    record(heads=heads, rows=rows, off=off, masked=masked_off)
    assert all(mine < 1e-2 for mine in off) and all(theirs < 1e-2 for theirs in masked_off)
    assert all(mine < 2 * theirs for mine, theirs in zip(off, masked_off, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_layers_attend_by_stretch(name: str, tmp_path: Path, record: Any) -> None:
    """Or nothing here would notice that they were left as they are."""
    build(name, tmp_path)
    (tmp_path / "family").write_text(name)
    policy = load_policy(str(tmp_path), small_config(tmp_path, dtype="bfloat16")).to(CUDA)
    batch = batch_of(tmp_path, policy)
    with mock.patch.object(prefix_attention, "attend", wraps=prefix_attention.attend) as kernel:
        found, ours = score(policy, batch)
    assert kernel.call_count == 2 * policy.hf.config.get_text_config().num_hidden_layers
    with mock.patch("mmr1_learner.model.takes_stretches", return_value=False):
        expected, theirs = score(policy, batch)
    norm = sum(float(grad.norm()) ** 2 for grad in theirs.values()) ** 0.5
    off = sum(float((ours[part] - grad).norm()) ** 2 for part, grad in theirs.items()) ** 0.5 / norm
    apart = float((found - expected).abs().max() / expected.abs().max())
    record(family=name, logprobs=apart, gradient=off)
    assert ours.keys() == theirs.keys() and apart < TOLERANCES["bfloat16"] and off < TOLERANCES["bfloat16"]
