"""Which metrics a task has: what one answer adds to each of them, and which of them is the headline.

A metric is a ratio of two sums over answers, so what an answer adds is a pair (total, weight); a mean has weight 1.
COCO's AP is none of these: `measuring` takes it from all boxes at once. What a metric means, and its source, stands in
docs/evaluation.md. The reward server has read the answers and compared them; only OCR's words are compared here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mmr1.evaluation.answers import Answer
from mmr1.evaluation.boxes import true_boxes
from mmr1.evaluation.reading import NOTHING_READ, compare_texts, nearest_text

Shares = dict[str, tuple[float, float]]

_ROUNDING = 1e-9  # an IoU of exactly 0.5 is not below it for the last digit of a division
_IOU_THRESHOLDS = {"acc_50": 0.5, "acc_75": 0.75, "acc_95": 0.95}


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """`params` is what the reward server is asked with, beside what the coordinates count."""

    headline: str
    shares: Callable[[Answer], Shares]
    params: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    has_ap: bool = False
    takes_size: bool = True  # the judge looks at the image's size: coordinates may be told in several ways


def metrics_of(task: str) -> TaskMetrics:
    """Of any task of the reward server: one without metrics of its own has the mean of its reward."""
    return _TASKS.get(task, _ANY)


def shares_of(answer: Answer) -> Shares:
    """What an answer adds to each metric of its task, and to those that every task has."""
    return {
        **metrics_of(answer.task).shares(answer),
        "invalid": (float(not answer.is_valid), 1.0),
        "truncated": (float(answer.is_truncated), 1.0),
    }


def _counting(answer: Answer) -> Shares:
    """Without a number an answer is as far off as 0 would be: else saying nothing would lower the error."""
    shares = {"accuracy": (float(answer.reward == 1.0), 1.0)}
    true = _number(answer.solution)
    if true is not None:
        said = float(answer.parsed["count"]) if answer.is_valid else 0.0
        shares["mae"] = (abs(said - true), 1.0)
    else:
        shares["mae"] = (0.0, 0.0)
    return shares


def _grounding(answer: Answer) -> Shares:
    iou = answer.components["iou"] if answer.is_valid else 0.0
    return {
        "mean_iou": (iou, 1.0),
        **{name: (float(iou >= least - _ROUNDING), 1.0) for name, least in _IOU_THRESHOLDS.items()},
    }


def _ocr(answer: Answer) -> Shares:
    alike = answer.components["edit"] if answer.is_valid else 0.0
    compared = _words(answer) if answer.is_valid else NOTHING_READ
    means = {
        "one_minus_edit_distance": alike,
        "edit_distance": 1.0 - alike,
        "accuracy": float(alike == 1.0),
        **compared,
    }
    return {name: (value, 1.0) for name, value in means.items()}


def _words(answer: Answer) -> dict[str, float]:
    read = answer.parsed["text"]
    return compare_texts(read, nearest_text(read, answer.solution))


def _detection(answer: Answer) -> Shares:
    """F1 = 2 · matched / (found + true), over all images. Nothing readable on an empty image is one wrong box there."""
    if answer.is_valid:
        matched, found = answer.components["num_matched"], answer.components["num_predicted"]
        return {"f1_50": (2.0 * matched, found + answer.components["num_true"])}
    num_true = sum(not box.is_crowd for box in true_boxes(answer))
    return {"f1_50": (0.0, float(max(1, num_true)))}


def _any_task(answer: Answer) -> Shares:
    return {"mean_reward": (answer.reward, 1.0), "accuracy": (float(answer.reward == 1.0), 1.0)}


def _number(solution: Any) -> float | None:
    """A true count; None for a text in words: the judge knows those, the error is taken without them."""
    try:
        return float(str(solution).replace(",", ""))
    except ValueError:
        return None


_ANY = TaskMetrics("mean_reward", _any_task)
_TASKS = {
    "counting": TaskMetrics("accuracy", _counting, MappingProxyType({"score": "exact"}), takes_size=False),
    "grounding": TaskMetrics("mean_iou", _grounding, MappingProxyType({"score": "iou"})),
    "ocr": TaskMetrics("one_minus_edit_distance", _ocr, MappingProxyType({"score": "edit"}), takes_size=False),
    "detection": TaskMetrics("f1_50", _detection, MappingProxyType({"score": "f1", "iou_threshold": 0.5}), has_ap=True),
}
HEADLINES = {name: task.headline for name, task in _TASKS.items()}

__all__ = ["HEADLINES", "Shares", "TaskMetrics", "metrics_of", "shares_of"]
