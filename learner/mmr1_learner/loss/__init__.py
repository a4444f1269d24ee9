"""The objective, one term a file; `objective.py` puts them together. Nothing here knows of models, ranks or Redis."""

from mmr1_learner.loss.advantages import group_advantages, has_variance
from mmr1_learner.loss.aggregation import token_weights
from mmr1_learner.loss.batch import TokenBatch
from mmr1_learner.loss.objective import compute_loss
from mmr1_learner.loss.overlong import overlong_reward
from mmr1_learner.loss.report import LossReport, means
from mmr1_learner.loss.token_stats import Projection, TokenStats, token_stats

__all__ = [
    "LossReport",
    "Projection",
    "TokenBatch",
    "TokenStats",
    "compute_loss",
    "group_advantages",
    "has_variance",
    "means",
    "overlong_reward",
    "token_stats",
    "token_weights",
]
