"""Rewards of one group to advantages.

Samples without a reward (a failed or late judge) take no part in the statistics and get no advantage: a failed judge
is not a bad answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_EPSILON = 1e-4


def group_advantages(rewards: Sequence[float | None]) -> list[float | None] | None:
    """GRPO's group-relative advantage, A = (r - mean) / (std + 1e-4), std with ddof 1 (arXiv 2402.03300, section 4.1).

    Args:
        rewards: one per rollout, None where there is none.

    Returns:
        One advantage per rollout, None where there is no reward; or None when fewer than two rollouts have one.
    """
    present = [reward for reward in rewards if reward is not None]
    if len(present) < 2:
        return None
    mean = sum(present) / len(present)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in present) / (len(present) - 1))
    return [None if reward is None else (reward - mean) / (deviation + _EPSILON) for reward in rewards]
