"""Rows that were set down are found again, one or many at once; a disk without room is one line."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmr1.errors import ConfigurationError
from mmr1.reading.row_store import MOST_TASKS, RowStore


def filled(count: int) -> RowStore:
    store = RowStore()
    for index in range(count):
        row = [f"caf\u00e9 {index}", {"box": [index, None, 0.1]}, ["a.png"] * (index % 3), "x"]
        store.append(row, task="odd" if index % 2 else "even", file=index // 1000, number=index + 7)
    store.seal()
    return store


def test_rows_come_back_as_they_were_from_anywhere_and_for_several_at_once() -> None:
    store = filled(3000)
    assert len(store) == 3000 and store.tasks == ["even", "odd"]
    for index in (0, 1, 1023, 1024, 2999):
        row = json.loads(store.content(index))
        assert row == [f"caf\u00e9 {index}", {"box": [index, None, 0.1]}, ["a.png"] * (index % 3), "x"]
        assert store.place(index) == (index // 1000, index + 7)
    assert list(store.contents(1000, 2100)) == [store.content(index) for index in range(1000, 2100)]
    assert list(store.task_numbers(1, 2500)) == [index % 2 for index in range(1, 2500)]
    assert list(store.contents(5, 5)) == []
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(store.content, [*range(3000)] * 2))
    assert found == [*store.contents(0, 3000)] * 2


def test_there_are_no_more_tasks_than_anybody_could_mean() -> None:
    store = RowStore()
    for index in range(MOST_TASKS):
        store.append([], task=str(index), file=0, number=1)
    with pytest.raises(ConfigurationError, match="more than 1000 tasks; 'task' names how a row is scored"):
        store.append([], task="one more", file=0, number=1)


@pytest.fixture
def small_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room_is_named_with_the_remedy(small_disk: None) -> None:
    with pytest.raises(
        ConfigurationError, match=r"set down in .*, which fails \(File too large\); free some of it, or"
    ):
        filled(20_000)
