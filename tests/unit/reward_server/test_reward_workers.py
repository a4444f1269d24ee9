"""Scoring in worker processes: what hangs, fails or dies takes down its own item only."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mmr1_reward_server import worker_main, worker_process, workers
from mmr1_reward_server.api import Outcome
from mmr1_reward_server.scoring import Overloaded, Scored, WorkersCannotStart
from mmr1_reward_server.worker_process import WorkerOptions, WorkerProcess
from mmr1_reward_server.worker_wire import (
    Progress,
)
from mmr1_reward_server.workers import WorkerPool
from tests.unit.reward_server.reward_scorers import FAILING, item

pytestmark = pytest.mark.asyncio(loop_scope="module")

restarts: Counter[str] = Counter()

# Long against what a scorer needs that does not hang, on a busy machine too.
DEADLINE = 0.5


def make(**changes: Any) -> WorkerPool:
    options = {"num_workers": 1, "item_deadline_seconds": DEADLINE, "max_pending_items": 100}
    rewards = changes.pop("rewards", FAILING)
    restarts.clear()
    return WorkerPool(
        WorkerOptions(rewards, max_response_chars=1000),
        **{**options, **changes},  # type: ignore[arg-type]
        on_restart=lambda cause: restarts.update([cause]),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[WorkerPool]:
    """Two workers for all tests that do not need a pool of their own."""
    pool = make(num_workers=2)
    await pool.start()
    yield pool
    await pool.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def patient() -> AsyncIterator[WorkerPool]:
    """One worker that may be slow without being late."""
    pool = make(item_deadline_seconds=2.0)
    await pool.start()
    yield pool
    await pool.close()


@pytest.fixture
def pool(shared: WorkerPool) -> WorkerPool:
    restarts.clear()
    return shared


def outcomes(scored: list[Scored]) -> list[str]:
    return [one.result.outcome.value for one in scored]


async def process_ids(pool: WorkerPool, num_items: int = 1) -> set[int]:
    scored = await pool.score([item("process_id")] * num_items)
    return {int(one.result.reward or 0) for one in scored}


async def until_scoring(pool: WorkerPool, task: str) -> None:
    """Returns while a worker of the pool is at an item of this task."""
    async with asyncio.timeout(60):
        while True:
            for worker, frame in pool._frames.items():
                if frame and worker.position is not None and frame[worker.position].item.task == task:
                    return
            await asyncio.sleep(0.005)


async def test_failures_stay_with_their_items(pool: WorkerPool) -> None:
    failing = ["raises", "nan", "infinite_component", "unspeakable", "surrogate", "deep", "no_such"]
    tasks = ["counting", *failing, "format"]
    scored = await pool.score([item(task, name=task) for task in tasks])
    assert [one.result.id for one in scored] == tasks
    assert outcomes(scored) == ["ok", *["verifier_error"] * len(failing), "ok"]
    assert all((one.result.reward is None) == (one.result.outcome is Outcome.VERIFIER_ERROR) for one in scored)
    assert scored[1].result.detail == "scorer of raises failed: RuntimeError: cannot judge <answer>3</answer> at all ?"
    assert all("unusable verdict" in one.result.detail for one in scored[2:7])
    assert not restarts


@pytest.mark.parametrize("task", ["sleeps", "holds_lock"])
async def test_a_hanging_scorer_times_out_alone(pool: WorkerPool, task: str) -> None:
    began = time.monotonic()
    scored = await pool.score([item("counting"), item(task, solution=3600), item("counting"), item("format")])
    assert outcomes(scored) == ["ok", "timeout", "ok", "ok"]
    assert scored[1].result.reward is None
    assert scored[1].result.detail == f"the scorer of this item did not finish within {DEADLINE:g} s"
    assert restarts == {"timeout": 1}
    assert time.monotonic() - began < 60  # the hour is not waited for; a new worker may be


@pytest.mark.parametrize(("task", "end"), [("exits", "exit code 7"), ("segfaults", "SIGSEGV")])
async def test_a_scorer_that_kills_its_process_fails_alone(pool: WorkerPool, task: str, end: str) -> None:
    scored = await pool.score([*[item("counting")] * 3, item(task), *[item("counting")] * 3])
    assert outcomes(scored) == ["ok"] * 3 + ["verifier_error"] + ["ok"] * 3
    assert scored[3].result.detail.startswith("the process that scored this item died: it ")
    assert end in scored[3].result.detail
    assert restarts == {"died": 1}


async def test_several_bad_items_of_one_batch_fail_each_for_itself(pool: WorkerPool) -> None:
    tasks = ["exits", "counting", "sleeps", "exits", "format", "counting"]
    scored = await pool.score([item(task, solution=3600 if task == "sleeps" else 3) for task in tasks])
    assert outcomes(scored) == ["verifier_error", "ok", "timeout", "verifier_error", "ok", "ok"]
    assert restarts == {"died": 2, "timeout": 1}


async def test_a_scorer_that_writes_where_it_should_not_cannot_forge_a_result(
    pool: WorkerPool, capfd: pytest.CaptureFixture[str]
) -> None:
    scored = await pool.score([item("scribbles"), item("counting")])
    assert outcomes(scored) == ["verifier_error", "ok"]
    assert "descriptors not its own" in scored[0].result.detail
    assert set(restarts) == {"nonsense"}
    assert "forged" not in capfd.readouterr().out


async def test_what_was_scribbled_is_not_held_against_the_item_in_hand_when_it_is_read() -> None:
    pool = make()  # one worker: both are in one frame, and the server reads while the second is being scored
    await pool.start()
    scored = await pool.score([item("scribbles"), item("sleeps", solution=0.3)])
    assert outcomes(scored) == ["verifier_error", "ok"]
    await pool.close()


async def test_a_worker_killed_from_outside_is_replaced() -> None:
    pool = make(item_deadline_seconds=60)
    (victim,) = await process_ids(pool)
    scoring = asyncio.ensure_future(pool.score([item("sleeps", solution=30), item("counting"), item("process_id")]))
    await until_scoring(pool, "sleeps")
    os.kill(victim, signal.SIGKILL)
    scored = await scoring
    assert outcomes(scored) == ["verifier_error", "ok", "ok"]
    assert "SIGKILL; was it out of memory?" in scored[0].result.detail
    assert scored[2].result.reward != victim
    os.kill(int(scored[2].result.reward or 0), signal.SIGKILL)  # while it is idle: nothing is lost
    assert outcomes(await pool.score([item("counting")])) == ["ok"]
    await pool.close()


async def test_deadline_is_of_each_item_not_of_the_batch(patient: WorkerPool) -> None:
    restarts.clear()
    began = time.monotonic()
    assert outcomes(await patient.score([item("sleeps", solution=0.45)] * 5)) == ["ok"] * 5
    assert time.monotonic() - began > 2.0
    assert not restarts


async def test_what_a_task_loads_on_first_use_is_not_held_against_an_item() -> None:
    pool = make(rewards=("tests.unit.reward_server.reward_scorers:LOADS",))
    assert outcomes(await pool.score([item("loads")])) == ["ok"]
    await pool.close()


async def test_the_event_loop_stays_free(patient: WorkerPool) -> None:
    scoring = asyncio.ensure_future(patient.score([item("sleeps", solution=1.0)]))
    longest, last = 0.0, time.monotonic()
    while not scoring.done():
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.5  # half of what the scorer takes


async def test_all_workers_take_part(pool: WorkerPool) -> None:
    ids: set[int] = set()
    async with asyncio.timeout(60):  # one of them may have to start yet
        while len(ids) < 2:
            ids |= await process_ids(pool, 64)
    assert not restarts


async def test_overload_takes_nothing() -> None:
    pool = make(max_pending_items=3, item_deadline_seconds=5)
    first = asyncio.ensure_future(pool.score([item("sleeps", solution=0.2)] * 2))
    await asyncio.sleep(0)
    assert pool.num_pending == 2
    with pytest.raises(Overloaded, match="2 items are pending, 3 is the limit"):
        await pool.score([item("counting")] * 2)
    assert outcomes(await pool.score([item("counting")])) == ["ok"]
    assert outcomes(await first) == ["ok", "ok"]
    assert pool.num_pending == 0
    await pool.close()
    with pytest.raises(Overloaded, match="shutting down"):
        await pool.score([item("counting")])


async def test_a_caller_who_leaves_frees_its_place(pool: WorkerPool) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pool.score([item("sleeps", solution=0.2)] * 100)
    assert pool.num_pending == 0
    began = time.monotonic()
    assert outcomes(await pool.score([item("counting")])) == ["ok"]
    assert time.monotonic() - began < 5  # half of what the hundred would have taken


async def test_closing_ends_every_process_and_answers_every_caller() -> None:
    pool = make(item_deadline_seconds=60)
    (worker,) = await process_ids(pool)
    scoring = asyncio.ensure_future(pool.score([item("sleeps", solution=3600), item("counting")]))
    await until_scoring(pool, "sleeps")
    await pool.close()
    assert outcomes(await scoring) == ["verifier_error"] * 2
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


async def test_a_reward_that_a_worker_cannot_import_is_named() -> None:
    pool = make(rewards=("no.such:reward",))
    with pytest.raises(WorkersCannotStart, match=r"--reward no\.such:reward cannot be imported: ModuleNotFoundError"):
        await pool.start()
    assert "no.such:reward" in (pool.unready or "")
    await pool.close()


async def test_a_server_out_of_descriptors_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pair, num_refused = socket.socketpair, 0

    def refuses_twice(*args: Any) -> tuple[socket.socket, socket.socket]:
        nonlocal num_refused
        num_refused += 1
        if num_refused <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return make_pair(*args)

    monkeypatch.setattr(worker_process.socket, "socketpair", refuses_twice)
    pool = make(rewards=())
    async with asyncio.timeout(60):
        assert outcomes(await pool.score([item("counting")])) == ["ok"]
    assert restarts == {"start_failed": 2}
    await pool.close()


async def test_a_server_that_stays_out_of_descriptors_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Progress, "new_descriptor", refuses)
    before = len(os.listdir("/dev/fd"))
    pool = make(rewards=())
    async with asyncio.timeout(10):
        (scored,) = await pool.score([item("counting")])
    assert scored.outcome is Outcome.VERIFIER_ERROR
    assert scored.result.detail == "not scored: no scoring process starts: no process could be started: " + (
        "Too many open files"
    )
    assert "Too many open files" in (pool.unready or "")
    assert len(os.listdir("/dev/fd")) == before
    await pool.close()


async def test_a_bug_at_the_end_of_a_worker_does_not_hang_its_callers() -> None:
    def fails(_: str) -> None:
        raise RuntimeError("a bug")

    pool = make()
    pool._on_restart = fails
    async with asyncio.timeout(60):
        assert outcomes(await pool.score([item("exits"), item("counting")])) == ["verifier_error"] * 2
    assert "RuntimeError: a bug" in (pool.unready or "")
    await pool.close()


async def test_a_bug_where_workers_are_kept_does_not_hang_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(WorkerProcess, "start", fails)
    pool = make(num_workers=2)
    async with asyncio.timeout(10):
        assert outcomes(await pool.score([item("counting")])) == ["verifier_error"]
    assert "RuntimeError: a bug" in (pool.unready or "")
    await pool.close()


@pytest.mark.parametrize(("before", "after"), [("0", "500"), ("-900", "500"), ("500", "500"), ("900\n", "900\n")])
async def test_a_worker_offers_itself_when_memory_runs_out(tmp_path: Path, before: str, after: str) -> None:
    adjustment = tmp_path / "oom_score_adj"
    adjustment.write_text(before)
    worker_main._volunteer(adjustment)
    assert adjustment.read_text() == after


async def test_a_worker_starts_where_it_may_not_offer_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_main._volunteer(tmp_path / "not there")
    adjustment = tmp_path / "oom_score_adj"
    adjustment.write_text("0")

    def refuses(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuses)
    worker_main._volunteer(adjustment)
    assert adjustment.read_text() == "0"


def nested(levels: int) -> Any:
    """Lists and objects by turns."""
    value: Any = 3
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


async def test_what_is_nested_too_deeply_is_refused_alone(pool: WorkerPool) -> None:
    deep = item("process_id", solution=nested(65))
    deep_params = item("process_id").model_copy(update={"params": {"a": nested(65)}})
    deepest = item("process_id", solution=nested(64))
    very_deep = item("process_id").model_copy(update={"solution": nested(100_000)})
    scored = await pool.score([deepest, deep, deep_params, very_deep, deepest])
    assert outcomes(scored) == ["ok", *["verifier_error"] * 3, "ok"]
    for one in scored[1:4]:
        assert one.result.detail == "lists and objects in solution or params are nested more than 64 levels deep"
        assert one.refused
    assert outcomes(await pool.score([deep])) == ["verifier_error"]
    assert not restarts


async def test_an_item_that_a_worker_cannot_read_fails_alone(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "too_deep", lambda _: None)
    unreadable = item("process_id", solution=nested(210))
    unwritable = item("process_id").model_copy(update={"solution": "\ud800"})
    good = item("counting")
    for bad in (unreadable, unwritable):
        scored = await pool.score([good, good, bad, good])
        assert outcomes(scored) == ["ok", "ok", "verifier_error", "ok"]
        assert scored[2].result.detail == "not scored: no scoring process can read this item"
    assert outcomes(await pool.score([unreadable, unwritable])) == ["verifier_error"] * 2
    assert pool.num_pending == 0
    assert not restarts


async def test_one_item_does_not_wait_for_thousands() -> None:
    pool = make(max_pending_items=10_000)
    await pool.start()
    thousands = asyncio.ensure_future(pool.score([item("sleeps", solution=0.001)] * 5000))
    await until_scoring(pool, "sleeps")
    began = time.monotonic()
    assert outcomes(await pool.score([item("counting")])) == ["ok"]
    assert not thousands.done()
    assert time.monotonic() - began < 3  # behind the others it would be 5
    thousands.cancel()
    await asyncio.gather(thousands, return_exceptions=True)
    assert outcomes(await pool.score([item("counting")])) == ["ok"]
    assert pool.num_pending == len(pool._queue) == 0
    await pool.close()


async def test_a_frame_is_bounded_whatever_part_of_an_item_is_long(
    patient: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    send = WorkerProcess.send

    def noted(worker: WorkerProcess, items: Any) -> None:
        sent.append((len(items), sum(map(len, items))))
        send(worker, items)

    monkeypatch.setattr(WorkerProcess, "send", noted)
    monkeypatch.setattr(workers, "_FRAME_SECONDS", 10.0)  # none is cut short for its time
    long = "a" * 100_000
    one_long = {
        "counting": item("counting", solution=long),
        "format": item("format").model_copy(update={"params": {"x": [long]}}),
    }
    for bad in one_long.values():
        scored = await patient.score([*[bad] * 30, item("counting")])
        assert outcomes(scored) == ["verifier_error"] * 30 + ["ok"]
    assert sum(count for count, _ in sent) == 62
    assert max(num_bytes for _, num_bytes in sent) <= 2**20
    sent.clear()
    assert outcomes(await patient.score([item("counting", solution=long * 20)] * 2)) == ["verifier_error"] * 2
    assert [count for count, _ in sent] == [1, 1]  # too large for company, not for a frame


async def test_no_items(pool: WorkerPool) -> None:
    assert await pool.score([]) == []
