"""What a group's rollouts are worth to training: the scored rewards, scaled, with what being too long costs.

It reads scores and knows no statistics of them; the reward server's own numbers stay in the records.
"""

from __future__ import annotations

from mmr1.config import RunConfig
from mmr1.records import FinishReason, Group
from mmr1_learner.loss import overlong_reward


def reward_of(group: Group, index: int) -> float | None:
    """The weighted sum as it was scored; None when the outcome has no reward."""
    score = group.rollouts[index].score
    return None if score is None else score.reward


def training_rewards(group: Group, config: RunConfig) -> list[float | None]:
    """One per rollout; None for one that takes part in nothing: it has no verdict, or is masked as too long."""
    rewards = []
    for index, rollout in enumerate(group.rollouts):
        reward = reward_of(group, index)
        rewards.append(
            overlong_reward(
                None if reward is None else config.reward_scale * reward,
                len(rollout.token_ids),
                group.prompt.sampling.max_completion_length,
                rollout.finish_reason is FinishReason.LENGTH,
                config,
            )
        )
    return rewards
