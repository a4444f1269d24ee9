"""What held-out answers are worth: the published metrics of each task, with intervals. docs/evaluation.md defines them.

Whoever evaluates brings answers that the reward server has judged (`judging`); this package asks no model, starts no
service and imports no torch.
"""

from mmr1.evaluation.answers import Answer
from mmr1.evaluation.comparing import Difference, compare
from mmr1.evaluation.judging import Judge
from mmr1.evaluation.measuring import TaskResult, measure
from mmr1.evaluation.resampling import Metric
from mmr1.evaluation.tasks import HEADLINES, metrics_of

__all__ = ["HEADLINES", "Answer", "Difference", "Judge", "Metric", "TaskResult", "compare", "measure", "metrics_of"]
