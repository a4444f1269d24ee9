"""What a completion that is too long is worth. Lengths and rewards in, rewards out."""

from __future__ import annotations

from mmr1.config import RunConfig


def overlong_reward(
    reward: float | None, num_tokens: int, max_tokens: int, truncated: bool, config: RunConfig
) -> float | None:
    """The reward that training sees of one completion.

    `mask`: none for one that was cut off at `max_tokens`, as for one without a verdict: it takes no part. `shape`: a
    penalty that falls linearly over the last `overlong_buffer` tokens, from 0 to -1 at `max_tokens` (DAPO,
    arXiv 2503.14476, eq. 13).
    """
    if reward is None or config.overlong == "none":
        return reward
    if config.overlong == "mask":
        return None if truncated else reward
    buffer = config.resolved_overlong_buffer
    over = num_tokens - (max_tokens - buffer)
    return reward - min(1.0, max(0.0, over / buffer))
