"""From judged answers to the metrics of each task, with intervals. The order of things; each metric is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmr1.evaluation.answers import Answer
from mmr1.evaluation.boxes import found_boxes, true_boxes
from mmr1.evaluation.coco import NAMES as COCO_NAMES
from mmr1.evaluation.coco import CocoEvaluation
from mmr1.evaluation.resampling import RESAMPLES, Floats, Metric, drawn_counts, drawn_ratios, interval
from mmr1.evaluation.tasks import metrics_of, shares_of


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task's metrics, the headline first. `num_samples` is the number of answers to each problem."""

    task: str
    headline: str
    num_problems: int
    num_samples: int
    metrics: dict[str, Metric]

    @property
    def accuracy(self) -> float | None:
        """The share of answers that are exactly right, for the tasks that know such."""
        metric = self.metrics.get("accuracy")
        return metric.value if metric else None

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "num_problems": self.num_problems,
            "num_samples": self.num_samples,
            "headline": self.headline,
            "metrics": {name: metric.as_json() for name, metric in self.metrics.items()},
        }


def measure(answers: Sequence[Answer], *, seed: int, resamples: int = RESAMPLES) -> list[TaskResult]:
    """The metrics of each task, in the order in which the tasks first occur.

    Args:
        answers: with the same number of samples for each problem of a task.
        seed: of the bootstrap.
        resamples: how many; 0 gives no intervals.

    Raises:
        ValueError: problems of one task have different numbers of answers.
    """
    tasks = dict.fromkeys(answer.task for answer in answers)
    return [_measure_task([answer for answer in answers if answer.task == task], seed, resamples) for task in tasks]


def _measure_task(answers: list[Answer], seed: int, resamples: int) -> TaskResult:
    task = answers[0].task
    num_problems = len({answer.problem for answer in answers})
    drawn = drawn_metrics(answers, seed, resamples)
    metrics = {name: interval(value, spread) for name, (value, spread) in drawn.items()}
    return TaskResult(task, metrics_of(task).headline, num_problems, len(answers) // num_problems, metrics)


def drawn_metrics(answers: Sequence[Answer], seed: int, resamples: int) -> dict[str, tuple[float, Floats]]:
    """Of answers to one task each metric's value and that of each resample (NaN: not defined), the headline first.

    The same seed draws the same problems for any other answers to them.

    Raises:
        ValueError: problems have different numbers of answers.
    """
    own = metrics_of(answers[0].task)
    answers = sorted(answers, key=lambda answer: (answer.problem, answer.sample))
    num_problems = len({answer.problem for answer in answers})
    num_samples, rest = divmod(len(answers), num_problems)
    if rest or any(answer.sample != place % num_samples for place, answer in enumerate(answers)):
        raise ValueError(f"task {answers[0].task}: its problems have different numbers of answers")
    metrics = _ratios(answers, num_problems, seed, resamples)
    if own.has_ap:
        metrics |= _average_precision(answers, num_problems, num_samples, seed, resamples)
    last = {name: metrics.pop(name) for name in ("invalid", "truncated")}
    first = {own.headline: metrics.pop(own.headline)}
    return {**first, **metrics, **last}


def _ratios(answers: list[Answer], num_problems: int, seed: int, resamples: int) -> dict[str, tuple[float, Floats]]:
    """The metrics that are ratios of sums, of answers in the order of their problems."""
    shares = [shares_of(answer) for answer in answers]
    names = list(shares[0])
    pairs = np.array([[share[name] for name in names] for share in shares], dtype=np.float64)  # [answers, M, 2]
    of_problems = pairs.reshape(num_problems, -1, len(names), 2).sum(axis=1)
    values, drawn = drawn_ratios(of_problems[..., 0], of_problems[..., 1], resamples, seed)
    return {name: (float(values[place]), drawn[:, place]) for place, name in enumerate(names)}


def _average_precision(
    answers: list[Answer], num_problems: int, num_samples: int, seed: int, resamples: int
) -> dict[str, tuple[float, Floats]]:
    """COCO's AP of each sample's answers to all images, averaged over the samples."""
    values, drawn = np.zeros(len(COCO_NAMES)), np.zeros((resamples, len(COCO_NAMES)))
    for sample in range(num_samples):
        chosen = answers[sample::num_samples]
        evaluation = CocoEvaluation([true_boxes(one) for one in chosen], [found_boxes(one) for one in chosen])
        values += evaluation.values() / num_samples
        drawn += evaluation.resampled(drawn_counts(num_problems, resamples, seed)) / num_samples
    return {name: (float(values[place]), drawn[:, place]) for place, name in enumerate(COCO_NAMES)}
