"""Two sets of answers to the same problems: by how much their metrics differ, and how sure that is.

Both are taken on the same resamples, so what makes a problem hard for either drops out of the difference, and its
interval is no wider than it must be. Knows no folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmr1.evaluation.answers import Answer
from mmr1.evaluation.measuring import drawn_metrics
from mmr1.evaluation.resampling import RESAMPLES, Metric, interval
from mmr1.evaluation.tasks import metrics_of


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of one task: of these answers, of the others, and these minus the others."""

    task: str
    metric: str
    is_headline: bool
    this: Metric
    other: Metric
    difference: Metric

    @property
    def is_clear(self) -> bool:
        """Whether 0 is outside the difference's interval."""
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and (low > 0 or high < 0)


def compare(
    these: Sequence[Answer], others: Sequence[Answer], *, seed: int, resamples: int = RESAMPLES
) -> list[Difference]:
    """Every metric of every task, in the order of `these`. The numbers of samples may differ.

    Raises:
        ValueError: they are not answers to the same problems, or a task's problems have different numbers of answers.
    """
    if _asked(these) != _asked(others):
        raise ValueError("they are not answers to the same problems")
    found = []
    for task in dict.fromkeys(answer.task for answer in these):
        mine, theirs = (
            drawn_metrics([answer for answer in answers if answer.task == task], seed, resamples)
            for answers in (these, others)
        )
        for name, (value, drawn) in mine.items():
            of_other, drawn_of_other = theirs[name]
            found.append(
                Difference(
                    task=task,
                    metric=name,
                    is_headline=name == metrics_of(task).headline,
                    this=interval(value, drawn),
                    other=interval(of_other, drawn_of_other),
                    difference=interval(value - of_other, drawn - drawn_of_other),
                )
            )
    return found


def _asked(answers: Sequence[Answer]) -> set[tuple[str, int]]:
    return {(answer.task, answer.problem) for answer in answers}


__all__ = ["Difference", "compare"]
