"""Each token's share of an optimizer step: how tokens and responses are averaged. Shares of all ranks add up."""

from __future__ import annotations

from collections.abc import Sequence

from mmr1.config import RunConfig


def token_weights(lengths: Sequence[int], config: RunConfig) -> list[float]:
    """The weight of each token of each response of one step.

    `sequence_mean`: mean over a response's tokens, then over responses (arXiv 2402.03300, eq. 3). `token_mean`: mean
    over all tokens (DAPO, 2503.14476, eq. 8). `constant`: sum over tokens divided by `max_completion_length`, then the
    mean over responses, so that no response is worth more for being short (Dr. GRPO, 2503.20783).

    Args:
        lengths: of the step's responses that take part, in tokens, on all ranks; none is 0.
    """
    if not lengths:
        return []
    if config.aggregation == "token_mean":
        return [1 / sum(lengths)] * len(lengths)
    if config.aggregation == "constant":
        return [1 / (config.max_completion_length * len(lengths))] * len(lengths)
    return [1.0 / length / len(lengths) for length in lengths]
