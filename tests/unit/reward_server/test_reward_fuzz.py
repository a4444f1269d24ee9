"""What must hold for any input, on a fixed sample of them. `make fuzz` searches further."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator

import pytest

from mmr1_reward_server import mathematics
from tests.fuzz import properties
from tests.fuzz.drawing import Draw
from tests.fuzz.searching import attempt, checks, smallest

CHECKS = checks()


@pytest.fixture(autouse=True)
def without_math_verify(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It takes as long as it likes with any text; the deadline that ends it is tested elsewhere."""
    monkeypatch.setitem(sys.modules, "math_verify", None)
    mathematics._load.cache_clear()
    monkeypatch.setattr(properties, "slowdown", 3.0)  # of a slow machine
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    mathematics._load.cache_clear()


@pytest.mark.parametrize(
    ("target", "num_inputs"), [("parsers", 1500), ("tasks", 3000), ("peers", 1500), ("frames", 2000)]
)
def test_what_holds_for_any_input(target: str, num_inputs: int) -> None:
    for seed in range(num_inputs):
        failure = attempt(CHECKS[target], random.Random(f"{target} {seed}").randbytes(16 + seed % 300))
        assert failure is None, f"{failure.place}\n{failure.shown()}"


def test_a_finding_is_made_small_and_stays_the_same_one() -> None:
    def check(draw: Draw) -> None:
        values = [draw.below(256) for _ in range(60)]
        assert 200 not in values or 17 not in values

    data = random.Random(1).randbytes(20) + bytes((200, 3, 4, 17)) + random.Random(2).randbytes(20)
    failure = attempt(check, data)
    assert failure is not None
    small, same = smallest(check, data, failure)
    assert (sorted(small), same.place) == ([17, 200], failure.place)
