"""Shared-prefix rows score exactly what separate padded rows would, values and gradients, with and without images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmr1_learner.model import Policy, PromptEncoder
from mmr1_learner.rows import Completion, Row, pack
from tests.models import small_config, small_policy

TEXT = "<|im_start|>user\n{images}How many digits are there?<|im_end|>\n<|im_start|>assistant\n"
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def policy_and_encoder(small_model: Path) -> tuple[Policy, PromptEncoder]:
    config = small_config(small_model)
    policy = small_policy(small_model)
    return policy, PromptEncoder(small_model, policy, config)


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def completion(tokens: tuple[int, ...]) -> Completion:
    return Completion(tokens, (0.0,) * len(tokens), 1.0, 1.0)


def separate_rows(policy: Policy, encoder: PromptEncoder, row: Row) -> list[torch.Tensor]:
    """The plain way: one padded row a completion, through the model's own forward and a full softmax."""
    found = []
    for one in row.completions:
        ids = torch.tensor([row.prompt.token_ids + one.token_ids])
        output = policy.hf(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=row.prompt.pixel_values,
            image_grid_thw=row.prompt.image_grid_thw,
            mm_token_type_ids=(ids == encoder.image_token_id).long(),
            use_cache=False,
        )
        logits = output.logits[0, len(row.prompt.token_ids) - 1 : -1].clone()
        logits[:, list(row.forbidden_token_ids)] -= 100.0
        logprobs = (logits / row.temperature).log_softmax(-1)
        found.append(logprobs.gather(-1, torch.tensor(one.token_ids)[:, None])[:, 0])
    return found


def test_rows_equal_separate_rows_in_values_and_gradients(policy_and_encoder: tuple[Policy, PromptEncoder]) -> None:
    policy, encoder = policy_and_encoder
    images = [[picture(0, 84, 56)], [], [picture(1, 56, 112), picture(2, 84, 84)]]
    rows = []
    for index, pictures in enumerate(images):
        text = TEXT.format(images=PLACEHOLDER * len(pictures))
        completions = tuple(completion(tuple(range(20 + i, 20 + i + length))) for i, length in enumerate((3, 1, 5)))
        rows.append(Row(encoder.encode(text, pictures), completions, 0.7 + 0.2 * index, encoder.forbidden_token_ids))

    policy.zero_grad()
    stats = policy(pack(rows, encoder.image_token_id, encoder.pad_token_id))
    factors = torch.linspace(-1, 1, stats.logprobs.numel())
    (stats.logprobs * factors).sum().backward()
    shared = {
        name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None
    }

    policy.zero_grad()
    plain = torch.cat([logprobs for row in rows for logprobs in separate_rows(policy, encoder, row)])
    (plain * factors).sum().backward()

    torch.testing.assert_close(stats.logprobs, plain, atol=1e-5, rtol=0)
    assert any("visual" in name for name in shared)
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(shared[name], parameter.grad, atol=2e-5, rtol=1e-3, msg=name)


def test_entropy_is_that_of_the_tempered_distribution(policy_and_encoder: tuple[Policy, PromptEncoder]) -> None:
    policy, encoder = policy_and_encoder
    row = Row(encoder.encode(TEXT.format(images=""), []), (completion((30, 31)),), 0.5, encoder.forbidden_token_ids)
    with torch.no_grad():
        stats = policy(pack([row], encoder.image_token_id, encoder.pad_token_id))
        ids = torch.tensor([(*row.prompt.token_ids, 30, 31)])
        logits = policy.hf(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -3:-1]
        logits[:, list(row.forbidden_token_ids)] -= 100.0
    expected = torch.distributions.Categorical(logits=logits / 0.5).entropy()
    torch.testing.assert_close(stats.entropy, expected, atol=1e-5, rtol=0)


def test_rows_with_other_forbidden_tokens_do_not_share_a_forward(
    policy_and_encoder: tuple[Policy, PromptEncoder],
) -> None:
    _, encoder = policy_and_encoder
    prompt = encoder.encode(TEXT.format(images=""), [])
    rows = [Row(prompt, (completion((30,)),), 1.0, forbidden) for forbidden in ((1,), (2,))]
    with pytest.raises(ValueError, match="forbid the same tokens"):
        pack(rows, encoder.image_token_id, encoder.pad_token_id)
