"""How many completions a row holds: by the shapes, in order, and without changing what is computed."""

from __future__ import annotations

import torch

from mmr1_learner.rows import Completion, EncodedPrompt, Row
from mmr1_learner.splitting import completions_per_row, split


def cost(num_prompt: int, num_completion: int, hidden_size: int, per_row: int) -> float:
    """Of one completion, as the module's page gives it."""
    length = num_prompt + per_row * num_completion
    return (6 * hidden_size * length + length**2) / per_row


def test_the_best_number_is_the_cheapest() -> None:
    for shape in ((1039, 64, 2048), (320, 32, 128), (1000, 1024, 2048), (96, 768, 64), (96, 64, 64), (10, 4000, 128)):
        found = completions_per_row(*shape)
        costs = {per_row: cost(*shape, per_row) for per_row in range(1, 100)}
        assert costs[found] <= min(costs.values()) * 1.01, shape


def test_short_completions_share_one_row_and_long_ones_have_their_own() -> None:
    assert completions_per_row(1039, 64, 2048) >= 8
    assert completions_per_row(96, 768, 64) == 1


def test_shares_are_even_in_order_and_whole() -> None:
    prompt = EncodedPrompt(tuple(range(100)), torch.arange(100), {})
    completions = tuple(Completion((index,) * 80, (0.0,) * 80, float(index), 1.0) for index in range(8))
    rows = split(Row(prompt, completions, 0.7, (3,)), 64)
    assert len(rows) > 1 and max(len(row.completions) for row in rows) - min(len(row.completions) for row in rows) <= 1
    assert tuple(one for row in rows for one in row.completions) == completions
    assert {(row.prompt is prompt, row.temperature, row.forbidden_token_ids) for row in rows} == {(True, 0.7, (3,))}
