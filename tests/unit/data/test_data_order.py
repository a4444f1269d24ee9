"""The order of a run: every problem once an epoch, tasks by weight, and the same for ever."""

from __future__ import annotations

import pytest

from mmr1.data_order import DataOrder


@pytest.mark.parametrize("num_problems", [1, 2, 3, 37, 64, 1000])
def test_every_epoch_takes_every_problem_once(num_problems: int) -> None:
    order = DataOrder(num_problems, seed=5)
    epochs = [[order.index(e * num_problems + i) for i in range(num_problems)] for e in range(3)]
    assert all(sorted(epoch) == list(range(num_problems)) for epoch in epochs)
    if num_problems > 30:
        assert epochs[0] != epochs[1] != list(range(num_problems))
        assert epochs[0] != [DataOrder(num_problems, seed=6).index(i) for i in range(num_problems)]
    assert order.epoch(num_problems) == 1


def test_the_order_never_changes() -> None:
    order = DataOrder(10, seed=0)
    assert [order.index(i) for i in range(10)] == [DataOrder(10, seed=0).index(i) for i in range(10)]


def test_the_order_looks_shuffled() -> None:
    order = DataOrder(1000, seed=0)
    firsts = [DataOrder(1000, seed).index(0) for seed in range(200)]
    neighbours = sum(abs(order.index(i) - order.index(i + 1)) == 1 for i in range(999))
    assert len(set(firsts)) > 150 and neighbours < 15
