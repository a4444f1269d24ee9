"""How many completions of a group one row should hold: sharing a prompt saves work, a long row costs it.

A row of P prompt tokens and k completions of C tokens costs, in units of what attention costs for a pair of tokens,

    6 H (P + k C)  for the matrices of the blocks, H being the hidden size: about 24 H² operations a token and layer,
                   against 4 H for each of the L tokens that attention's mask spans
    (P + k C)²     for attention, because a dense mask is computed whole, also where no token sees another

so a completion is cheapest in rows of k = P / C x sqrt(1 + 6 H / P). Of long prompts and short completions that is all
of a group; of reasoning many times as long as the prompt it is one row each. What the image's tower costs is left out,
which splits prompts with large images a little too early. It knows no layout: rows.py has that.
"""

from __future__ import annotations

import math

from mmr1_learner.rows import Row


def split(row: Row, hidden_size: int) -> list[Row]:
    """The row's completions in rows of their own, in order and in even shares; the prompt is in each."""
    completions = row.completions
    num_prompt = len(row.prompt.token_ids)
    mean = sum(len(completion.token_ids) for completion in completions) / len(completions)
    best = completions_per_row(num_prompt, mean, hidden_size)
    num_rows = math.ceil(len(completions) / best)
    size = math.ceil(len(completions) / num_rows)
    starts = range(0, len(completions), size)
    return [
        Row(row.prompt, completions[start : start + size], row.temperature, row.forbidden_token_ids) for start in starts
    ]


def completions_per_row(num_prompt: int, num_completion: float, hidden_size: int) -> int:
    """The k above, rounded, at least 1."""
    best = num_prompt / max(1.0, num_completion) * math.sqrt(1 + 6 * hidden_size / max(1, num_prompt))
    return max(1, round(best))
