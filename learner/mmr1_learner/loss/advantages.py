"""Rewards of one group to advantages.

Samples without a reward (a failed or late judge) take no part in the statistics and get no advantage: a failed judge
is not a bad answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_EPSILON = 1e-4


def group_advantages(rewards: Sequence[float | None], objective: str = "grpo") -> list[float | None] | None:
    """Each reward against its group.

    `grpo`, `dapo`, `gspo`, `cispo`: A = (r - mean) / (std + 1e-4), std with ddof 1 (arXiv 2402.03300, section 4.1).
    `dr_grpo` and `kimi`: A = r - mean (2503.20783; 2501.12599, eq. 3). `rloo`: A = r - mean of the others (2402.14740).
    Where all rewards are equal every advantage is exactly 0.

    Args:
        rewards: one per rollout, None where there is none.

    Returns:
        One advantage per rollout, None where there is no reward; or None when fewer than two rollouts have one.
    """
    present = [reward for reward in rewards if reward is not None]
    if len(present) < 2:
        return None
    if not has_variance(rewards):
        return [None if reward is None else 0.0 for reward in rewards]
    mean = sum(present) / len(present)
    if objective == "rloo":
        scale = len(present) / (len(present) - 1)  # r - mean of the others = (r - mean) n / (n - 1)
    elif objective in ("dr_grpo", "kimi"):
        scale = 1.0
    else:
        scale = 1 / (math.sqrt(sum((reward - mean) ** 2 for reward in present) / (len(present) - 1)) + _EPSILON)
    return [None if reward is None else (reward - mean) * scale for reward in rewards]


def has_variance(rewards: Sequence[float | None]) -> bool:
    """Whether there is anything to tell the group's samples apart by."""
    return len({reward for reward in rewards if reward is not None}) > 1
