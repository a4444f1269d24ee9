"""The parity gate's bound in bfloat16 follows the model: what the engines differ by, and what a planted change does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest

from mmr1_learner import parity
from mmr1_learner.parity import ParityError, ParityReport, gate, narrowed

SMALL_MODEL = (6e-4, 1.6e-2)  # gap and planted change, as measured in bfloat16
RANDOM_3B = (3.8e-2, 6.3e-1)


@pytest.mark.parametrize(("gap", "expected"), [(0.0, 1e-2), (6e-4, 1e-2), (3e-3, 3e-2), (3.8e-2, 5e-2), (1.0, 5e-2)])
def test_ten_times_the_gap_and_never_wider_than_the_bound(gap: float, expected: float) -> None:
    assert narrowed(5e-2, gap) == pytest.approx(expected)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whether the gate passes, of a model with this gap, where a planted change makes that one."""

    @contextmanager
    def planted(policy: Any, tower: str) -> Iterator[str]:
        yield f"{tower}.weight"

    monkeypatch.setattr(parity, "towers", lambda _: ("visual",))
    monkeypatch.setattr(parity, "perturbed", planted)

    def ask(gap: float, seen: float, *, narrow: bool) -> bool:
        reports = iter([ParityReport(gap, gap, 1, 0.0), ParityReport(seen, seen, 1, 0.0)])
        try:
            gate(Mock(compare=lambda _: next(reports)), Mock(), [], 5e-2, narrow=narrow)
        except ParityError:
            return False
        return True

    return ask


def test_one_bound_does_not_fit_both_models_and_a_narrowed_one_does(passes: Any) -> None:
    assert passes(*RANDOM_3B, narrow=False) and not passes(*SMALL_MODEL, narrow=False)
    assert passes(*RANDOM_3B, narrow=True) and passes(*SMALL_MODEL, narrow=True)


def test_what_is_above_the_bound_or_goes_unseen_is_refused(passes: Any) -> None:
    assert not passes(6e-2, 1.0, narrow=True)
    assert not passes(6e-4, 9e-3, narrow=True)
