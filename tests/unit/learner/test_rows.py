"""Shared-prefix rows score exactly what separate padded rows would, values and gradients, with and without images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmr1_learner.calls import place
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
    mrope = row.prompt.position_ids is not None and row.prompt.position_ids.ndim == 2
    for one in row.completions:
        ids = torch.tensor([row.prompt.token_ids + one.token_ids])
        output = policy.hf(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **row.prompt.images,
            **({"mm_token_type_ids": (ids == encoder.image_token_id).long()} if mrope else {}),
            use_cache=False,
        )
        logits = output.logits[0, len(row.prompt.token_ids) - 1 : -1].clone()
        logits[:, list(row.forbidden_token_ids)] -= 100.0
        logprobs = (logits / row.temperature).log_softmax(-1)
        found.append(logprobs.gather(-1, torch.tensor(one.token_ids)[:, None])[:, 0])
    return found


def mixed_rows(encoder: PromptEncoder) -> list[Row]:
    """Prompts with 0, 1 and 2 images of different sizes, in an order in which longest-first would place them anew."""
    images = [[], [picture(0, 84, 56)], [], [picture(1, 56, 168), picture(2, 140, 140)], [picture(3, 56, 56)]]
    rows = []
    for index, pictures in enumerate(images):
        text = TEXT.format(images=PLACEHOLDER * len(pictures))
        completions = tuple(completion(tuple(range(20 + i, 20 + i + length))) for i, length in enumerate((3, 1, 5)))
        rows.append(Row(encoder.encode(text, pictures), completions, 0.7 + 0.1 * index, encoder.forbidden_token_ids))
    return rows


def length_of(row: Row) -> int:
    return len(row.prompt.token_ids) + sum(len(one.token_ids) for one in row.completions)


# Up to the longest group; two or three groups with images in one row; all in one row.
@pytest.mark.parametrize("max_row_tokens", [0, 130, 1000])
def test_rows_equal_separate_rows_in_values_and_gradients(
    policy_and_encoder: tuple[Policy, PromptEncoder], max_row_tokens: int
) -> None:
    policy, encoder = policy_and_encoder
    rows = mixed_rows(encoder)

    policy.zero_grad()
    batch = pack(rows, encoder.image_token_id, encoder.pad_token_id, max_row_tokens)
    num_rows, length = batch.calls[0].input_ids.shape
    assert num_rows < len(rows) and (num_rows == 1) == (max_row_tokens == 1000)
    assert length <= max(max_row_tokens, *map(length_of, rows))
    stats = policy(batch)
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


def test_each_length_gets_room_of_its_own_within_the_bound() -> None:
    lengths = [5, 9, 3, 1, 4, 9, 2]
    places = place(lengths, 10)
    taken = [(row, start + i) for (row, start), length in zip(places, lengths, strict=True) for i in range(length)]
    assert len(taken) == len(set(taken)) == sum(lengths)
    assert max(position for _, position in taken) < 10
    assert len({row for row, _ in places}) == 4, "no more rows than needed"
    with pytest.raises(ValueError, match="does not fit"):
        place(lengths, 8)


def test_no_row_grows_when_groups_share_rows(policy_and_encoder: tuple[Policy, PromptEncoder]) -> None:
    _, encoder = policy_and_encoder
    rows = mixed_rows(encoder)
    batch = pack(rows, encoder.image_token_id, encoder.pad_token_id)
    assert batch.calls[0].input_ids.shape[1] == max(map(length_of, rows))


def test_rows_with_other_forbidden_tokens_do_not_share_a_forward(
    policy_and_encoder: tuple[Policy, PromptEncoder],
) -> None:
    _, encoder = policy_and_encoder
    prompt = encoder.encode(TEXT.format(images=""), [])
    rows = [Row(prompt, (completion((30,)),), 1.0, forbidden) for forbidden in ((1,), (2,))]
    with pytest.raises(ValueError, match="forbid the same tokens"):
        pack(rows, encoder.image_token_id, encoder.pad_token_id)
