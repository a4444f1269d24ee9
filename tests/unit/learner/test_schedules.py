"""What moves over a run: the learning rate's curve, and a word where a resumed run is on another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mmr1_learner.schedules import learning_rate, say_other_length
from tests.models import small_config


def config(**options: Any) -> Any:
    return small_config(Path("model"), **options)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [("constant", [0.5, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.75, 0.5]), ("cosine", [0.5, 1, 1, 0.853553, 0.5])],
)
def test_the_curves(scheduler: str, expected: list[float]) -> None:
    """Two steps of warm-up, then four in which linear and cosine would come to 0."""
    run = config(num_steps=6, warmup_steps=2, learning_rate=1.0, lr_scheduler=scheduler)
    assert [learning_rate(run, step) for step in range(5)] == pytest.approx(expected, abs=1e-6)


def test_a_run_of_another_length_says_where_its_schedules_now_are() -> None:
    """Half of the way of 20 steps is a quarter of the way of 40: nobody should have to find that out from a plot."""
    linear = {"temperature_func": "linear", "temperature_begin": 0.8, "temperature_end": 1.2}
    run = config(num_steps=41, **linear, lr_scheduler="linear", learning_rate=1e-3)
    with capture_logs() as lines:
        say_other_length(run, num_steps=21, step=10)
    (line,) = lines
    assert line["log_level"] == "warning" and (line["before"], line["now"]) == (21, 41)
    assert line["temperature"] == "1 would follow, 0.9 does"
    assert line["learning_rate"] == "0.0005238 would follow, 0.0007561 does"


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ({"num_steps": 40}, 20),  # nothing moves
        ({"num_steps": 40, "lr_scheduler": "linear"}, 40),
        ({"num_steps": 40, "lr_scheduler": "linear"}, 0),  # a checkpoint that does not say
    ],
)
def test_nothing_is_said_where_nothing_changes(options: dict[str, Any], num_steps: int) -> None:
    with capture_logs() as lines:
        say_other_length(config(**options), num_steps, step=10)
    assert lines == []


def test_fine_tuning_has_no_temperature() -> None:
    linear = {"temperature_func": "linear", "temperature_begin": 0.8, "temperature_end": 1.2}
    with capture_logs() as lines:
        say_other_length(config(num_steps=40, **linear), 20, step=10, samples=False)
        say_other_length(config(num_steps=40, **linear, lr_scheduler="cosine"), 20, step=10, samples=False)
    assert len(lines) == 1 and "temperature" not in lines[0]
