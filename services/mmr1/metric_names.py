"""The held-out metrics by name: how people read each, and whether it is a share. One table, for all who show them.

What a metric means stands in docs/evaluation.md, how it is computed in mmr1.evaluation. This file computes nothing.
"""

from __future__ import annotations

from typing import NamedTuple


class MetricName(NamedTuple):
    """`is_share`: from 0 to 1 by its definition, so shown in percent and on one scale. Others may have any value."""

    words: str
    is_share: bool = True


METRIC_NAMES = {
    "accuracy": MetricName("accuracy"),
    "mae": MetricName("mean absolute error", is_share=False),
    "mean_iou": MetricName("mean IoU"),
    "acc_50": MetricName("accuracy at IoU 0.5"),
    "acc_75": MetricName("accuracy at IoU 0.75"),
    "acc_95": MetricName("accuracy at IoU 0.95"),
    "one_minus_edit_distance": MetricName("1 − edit distance"),  # noqa: RUF001
    "edit_distance": MetricName("edit distance"),
    "precision": MetricName("precision of words"),
    "recall": MetricName("recall of words"),
    "f1": MetricName("F1 of words"),
    "bleu": MetricName("BLEU"),
    "meteor": MetricName("METEOR"),
    "f1_50": MetricName("F1 at IoU 0.5"),
    "ap": MetricName("AP"),
    "ap50": MetricName("AP at IoU 0.5"),
    "ap75": MetricName("AP at IoU 0.75"),
    "ar": MetricName("AR"),
    "mean_reward": MetricName("mean reward", is_share=False),
    "invalid": MetricName("invalid"),
    "truncated": MetricName("truncated"),
}


def words_for(metric: str) -> str:
    """A metric's name for people; of one that is not in the table, as another release may have, as it is written."""
    known = METRIC_NAMES.get(metric)
    return known.words if known else metric.replace("_", " ")


def is_share(metric: str) -> bool:
    """Whether it is from 0 to 1 whatever the answers are; of one that is not in the table that is not known."""
    known = METRIC_NAMES.get(metric)
    return known is not None and known.is_share


__all__ = ["METRIC_NAMES", "MetricName", "is_share", "words_for"]
