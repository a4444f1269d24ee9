"""Whose turn it is: one item of each waiting batch, within a batch in order, and nothing lost or given twice."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.queueing import Batch, FairQueue, Pending
from tests.unit.reward_server.reward_scorers import item

LOOP = asyncio.new_event_loop()


def batch_of(num_items: int) -> list[Pending]:
    batch = Batch(LOOP.create_future(), [None] * num_items, num_items)
    return [Pending(item("counting"), batch, place) for place in range(num_items)]


def drain(queue: FairQueue) -> list[Pending]:
    return [queue.pop() for _ in range(len(queue))]


def test_batches_take_turns() -> None:
    queue = FairQueue()
    many, few, one = batch_of(4), batch_of(2), batch_of(1)
    queue.add(many)
    first = queue.pop()
    queue.add(few)
    queue.add(one)
    assert [first, *drain(queue)] == [many[0], many[1], few[0], one[0], many[2], few[1], many[3]]


def test_what_comes_back_is_next() -> None:
    queue = FairQueue()
    many, one, other = batch_of(4), batch_of(1), batch_of(2)
    queue.add(many)
    queue.add(one)
    taken = [queue.pop() for _ in range(3)]
    queue.add(other)
    queue.put_back(taken)
    assert drain(queue) == [one[0], many[0], other[0], many[1], other[1], many[2], many[3]]


def test_nothing_waits_for_a_caller_who_has_gone() -> None:
    queue = FairQueue()
    gone, stays = batch_of(3), batch_of(1)
    queue.add(gone)
    queue.add(stays)
    taken = queue.pop()
    gone[0].batch.done.cancel()
    queue.drop(gone[0].batch)
    queue.drop(gone[0].batch)
    queue.put_back([taken])
    assert (len(queue), queue.pop(), len(queue)) == (1, stays[0], 0)
    for take in (queue.first, queue.pop):
        with pytest.raises(IndexError, match="no item waits"):
            take()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 6)),
        st.tuples(st.just("take"), st.integers(1, 8)),
        st.tuples(st.just("back"), st.integers(0, 8)),
        st.tuples(st.just("drop"), st.integers(0, 5)),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_every_item_is_given_once_and_in_order_whatever_happens(steps: list[tuple[str, int]]) -> None:
    queue = FairQueue()
    batches: list[list[Pending]] = []
    waiting: list[set[Pending]] = []  # what should be in the queue
    frame: list[Pending] = []
    for step, number in steps:
        if step == "add":
            batches.append(batch_of(number))
            waiting.append(set(batches[-1]))
            queue.add(batches[-1])
        elif step == "take":
            frame = []
            for _ in range(min(number, len(queue))):
                pending = queue.first()
                assert queue.pop() is pending
                mine = waiting[[one[0].batch for one in batches].index(pending.batch)]
                assert pending.place == min(one.place for one in mine)
                mine.remove(pending)
                frame.append(pending)
        elif step == "back":
            back, frame = frame[number:], []
            queue.put_back(back)
            for batch, mine in zip(batches, waiting, strict=True):
                mine.update(one for one in back if one.batch is batch[0].batch and not one.batch.done.done())
        elif number < len(batches):
            batches[number][0].batch.done.cancel()
            queue.drop(batches[number][0].batch)
            waiting[number].clear()
        assert len(queue) == sum(map(len, waiting))
    assert set(drain(queue)) == set().union(*waiting)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_between_two_items_of_a_batch_each_other_batch_has_one(sizes: list[int]) -> None:
    queue = FairQueue()
    for size in sizes:
        queue.add(batch_of(size))
    rounds: dict[Batch, int] = {}
    for pending in drain(queue):
        assert pending.place == rounds.get(pending.batch, 0)
        rounds[pending.batch] = pending.place + 1
        left_behind = [count for batch, count in rounds.items() if count < len(batch.scored)]
        assert max(rounds.values()) - min(left_behind, default=max(rounds.values())) <= 1
