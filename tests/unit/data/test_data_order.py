"""The order of a run: every problem once an epoch, tasks by weight, and the same for ever."""

from __future__ import annotations

import pytest

from mmr1.data_order import DataOrder, WeightedOrder, slots_of


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


TASKS = {"counting": list(range(0, 90, 3)), "grounding": [i for i in range(90) if i % 3]}


def test_weights_are_the_tasks_shares_and_each_goes_through_its_own_problems() -> None:
    order = WeightedOrder(TASKS, {"counting": 2, "grounding": 1}, seed=3)
    taken = [order.index(position) for position in range(180)]
    for start in range(0, 180, 3):
        assert sum(index in TASKS["counting"] for index in taken[start : start + 3]) == 2, "in every cycle"
    of_counting = [index for index in taken if index in TASKS["counting"]]
    assert sorted(of_counting[:30]) == sorted(of_counting[30:60]) == TASKS["counting"], "every epoch has each once"
    assert of_counting[:30] != of_counting[30:60]
    assert sorted(index for index in taken if index not in TASKS["counting"]) == TASKS["grounding"]


def test_a_weighted_order_is_found_anywhere_and_never_changes() -> None:
    weights = {"counting": 0.3, "grounding": 0.7}
    order, again = WeightedOrder(TASKS, weights, seed=1), WeightedOrder(dict(reversed(TASKS.items())), weights, seed=1)
    positions = [0, 1, 17, 10**6, 2**40]
    assert [order.index(position) for position in positions] == [again.index(position) for position in positions]
    assert [order.index(i) for i in range(50)] != [WeightedOrder(TASKS, weights, 2).index(i) for i in range(50)]
    tasks = ["c" if order.index(position) in TASKS["counting"] else "g" for position in range(100)]
    assert tasks.count("c") == 30 and "".join(tasks[:10]) != "".join(tasks[10:20]), "shuffled anew each cycle"


@pytest.mark.parametrize(
    ("weights", "slots"),
    [
        ({"a": 2, "b": 1}, {"a": 2, "b": 1}),
        ({"a": 0.5, "b": 0.25, "c": 0}, {"a": 2, "b": 1}),
        ({"a": 300, "b": 200}, {"a": 3, "b": 2}),
        ({"a": 0.1, "b": 0.2}, {"a": 1, "b": 2}),
        ({"a": 0.333333333, "b": 0.666666667}, {"a": 333, "b": 667}),
        ({"a": 1e-9, "b": 1}, {"a": 1, "b": 1000}),
    ],
)
def test_a_cycle_is_as_short_as_the_weights_allow(weights: dict[str, float], slots: dict[str, int]) -> None:
    assert slots_of(weights) == slots


def test_a_task_of_weight_zero_never_comes() -> None:
    order = WeightedOrder(TASKS, {"counting": 1, "grounding": 0}, seed=0)
    assert {order.index(position) for position in range(60)} == set(TASKS["counting"])
    with pytest.raises(ValueError, match="no problem is of a task with a weight above 0"):
        WeightedOrder({"ocr": [0]}, {"ocr": 0}, seed=0)
