"""The objective, one term a file; `objective.py` puts them together. Nothing here knows of models, ranks or Redis."""

from mmr1_learner.loss.advantages import group_advantages
from mmr1_learner.loss.objective import LossReport, TokenBatch, compute_loss
from mmr1_learner.loss.token_stats import TokenStats, token_stats

__all__ = ["LossReport", "TokenBatch", "TokenStats", "compute_loss", "group_advantages", "token_stats"]
