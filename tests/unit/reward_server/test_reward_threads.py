"""Scoring off the event loop: what hangs or fails takes down its own item only."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mmr1_reward_server.api import Outcome
from mmr1_reward_server.scoring import Overloaded, Scored
from mmr1_reward_server.threads import ThreadScoring
from tests.unit.reward_server.reward_scorers import failing_tasks, item


def make(**changes: Any) -> ThreadScoring:
    options = {
        "num_threads": 2,
        "item_deadline_seconds": 0.2,
        "max_response_chars": 1000,
        "max_pending_items": 100,
        "max_stuck_threads": 4,
    }
    return ThreadScoring(failing_tasks(), **{**options, **changes})  # type: ignore[arg-type]


def outcomes(scored: list[Scored]) -> list[str]:
    return [one.result.outcome.value for one in scored]


async def test_failures_stay_with_their_items() -> None:
    tasks = ["counting", "raises", "nan", "infinite_component", "unspeakable", "no_such", "format"]
    scored = await make().score([item(task, name=task) for task in tasks])
    assert [one.result.id for one in scored] == tasks
    assert outcomes(scored) == ["ok", *["verifier_error"] * 5, "ok"]
    assert all((one.result.reward is None) == (one.result.outcome is Outcome.VERIFIER_ERROR) for one in scored)
    assert scored[1].result.detail == "scorer of raises failed: RuntimeError: cannot judge <answer>3</answer> at all ?"
    assert "unusable verdict" in scored[2].result.detail


async def test_a_hanging_scorer_times_out_alone() -> None:
    began = time.monotonic()
    scored = await make().score([item("counting"), item("sleeps", solution=2), item("counting"), item("format")])
    assert outcomes(scored) == ["ok", "timeout", "ok", "ok"]
    assert scored[1].result.reward is None
    assert time.monotonic() - began < 1


async def test_deadline_is_of_each_item_not_of_the_batch() -> None:
    scored = await make().score([item("sleeps", solution=0.1)] * 5)
    assert outcomes(scored) == ["ok"] * 5


async def test_the_event_loop_stays_free() -> None:
    scoring = asyncio.ensure_future(make(item_deadline_seconds=5).score([item("sleeps", solution=0.3)]))
    longest, last = 0.0, time.monotonic()
    while not scoring.done():
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.2


async def test_batches_wait_for_a_thread_without_losing_their_deadline() -> None:
    scoring = make(num_threads=1)
    batches = await asyncio.gather(*(scoring.score([item("sleeps", solution=0.1)]) for _ in range(5)))
    assert [outcomes(batch) for batch in batches] == [["ok"]] * 5


async def test_stuck_threads_are_bounded_and_leave_when_they_end() -> None:
    scoring = make(item_deadline_seconds=0.05, max_stuck_threads=2)
    scored = await scoring.score([item("sleeps", solution=0.6)] * 2 + [item("counting")])
    assert outcomes(scored) == ["timeout", "timeout", "verifier_error"]
    assert "still running" in (scoring.unready or "")
    with pytest.raises(Overloaded):
        await scoring.score([item("counting")])
    await asyncio.sleep(0.7)
    assert scoring.unready is None
    assert outcomes(await scoring.score([item("counting")])) == ["ok"]


async def test_overload_takes_nothing() -> None:
    scoring = make(max_pending_items=3, item_deadline_seconds=5)
    first = asyncio.ensure_future(scoring.score([item("sleeps", solution=0.2)] * 2))
    await asyncio.sleep(0.05)
    assert scoring.num_pending == 2
    with pytest.raises(Overloaded, match="2 items are pending, 3 is the limit"):
        await scoring.score([item("counting")] * 2)
    assert outcomes(await scoring.score([item("counting")])) == ["ok"]
    assert outcomes(await first) == ["ok", "ok"]
    assert scoring.num_pending == 0


async def test_a_caller_who_leaves_frees_its_place() -> None:
    scoring = make(num_threads=1, item_deadline_seconds=5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await scoring.score([item("sleeps", solution=0.2)] * 10)
    assert scoring.num_pending == 0
    assert outcomes(await scoring.score([item("counting")])) == ["ok"]


async def test_nothing_is_taken_after_closing() -> None:
    scoring = make()
    await scoring.close()
    with pytest.raises(Overloaded, match="shutting down"):
        await scoring.score([item("counting")])


async def test_no_items() -> None:
    assert await make().score([]) == []
