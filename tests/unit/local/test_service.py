"""Restarts, gangs, readiness and the causes that are named, with real processes."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from mmr1.errors import ConfigurationError
from mmr1.local import service as service_module
from mmr1.local.guard import Guard
from mmr1.local.logs import MergedLog
from mmr1.local.service import ProcessSpec, Service, ServiceFailedError, ServiceSpec
from tests.unit.local.processes import wait_until_dead

Program = Callable[..., ProcessSpec]

FAILS_UNTIL_THIRD_LIFE = """
import pathlib, sys
lives = pathlib.Path(sys.argv[1], "lives")
lives.write_text(lives.read_text() + "x" if lives.exists() else "x")
print("life", len(lives.read_text()))
sys.exit(0 if len(lives.read_text()) == 3 else 3)
"""


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "FIRST_DELAY_SECONDS", 0.05)


async def test_a_service_that_dies_is_restarted_and_the_cause_is_named(
    program: Program, guard: Guard, log: MergedLog, screen: io.StringIO
) -> None:
    spec = ServiceSpec("learner", (program("learner", FAILS_UNTIL_THIRD_LIFE),), finishes=True)
    service = Service(spec, guard, log, max_restarts=5)
    await service.run()
    assert service.num_restarts == 2
    shown = screen.getvalue()
    assert "learner exited with code 3; restart 1 of 5 in 0 s" in shown
    assert "life 3" in shown
    assert log.path("learner").read_text().splitlines() == ["life 1", "life 2", "life 3"]


async def test_max_restarts_ends_it(program: Program, guard: Guard, log: MergedLog) -> None:
    spec = ServiceSpec("reward", (program("reward", "raise SystemExit(4)"),))
    with pytest.raises(ServiceFailedError, match=r"reward failed 3 times .*; last: reward exited with code 4"):
        await Service(spec, guard, log, max_restarts=2).run()


async def test_a_life_that_lasted_begins_the_count_anew(
    program: Program, guard: Guard, log: MergedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two failures with one restart allowed: too many, unless the lives between them were long."""
    monkeypatch.setattr(service_module, "STEADY_SECONDS", 0.0)
    spec = ServiceSpec("learner", (program("learner", FAILS_UNTIL_THIRD_LIFE),), finishes=True)
    await Service(spec, guard, log, max_restarts=1).run()


async def test_a_signal_is_named(program: Program, guard: Guard, log: MergedLog) -> None:
    spec = ServiceSpec("reward", (program("reward", "import os; os.kill(os.getpid(), 9)"),))
    with pytest.raises(ServiceFailedError, match="reward was ended by signal 9"):
        await Service(spec, guard, log, max_restarts=0).run()


async def test_a_configuration_error_is_not_retried(program: Program, guard: Guard, log: MergedLog) -> None:
    source = "import sys; print('mmr1: error: no such model', file=sys.stderr); sys.exit(2)"
    service = Service(ServiceSpec("rollout-0", (program("rollout-0", source),)), guard, log, max_restarts=5)
    with pytest.raises(ConfigurationError, match=r"^rollout-0: no such model$"):
        await service.run()
    assert service.num_restarts == 0


async def test_a_service_that_should_stay_up_may_not_end(program: Program, guard: Guard, log: MergedLog) -> None:
    with pytest.raises(ServiceFailedError, match="exited with code 0"):
        await Service(ServiceSpec("reward", (program("reward", "pass"),)), guard, log, max_restarts=0).run()


async def test_a_service_that_never_gets_ready_is_ended(program: Program, guard: Guard, log: MergedLog) -> None:
    async def never() -> bool:
        return False

    process = program("reward", "import os, time; print(os.getpid()); time.sleep(600)")
    service = Service(ServiceSpec("reward", (process,), ready=never, ready_deadline_seconds=0.5), guard, log, 0)
    with pytest.raises(ServiceFailedError, match="was not ready after"):
        await service.run()
    assert not service.is_ready.is_set()
    wait_until_dead([int(log.tail("reward")[0])])


async def test_one_dead_rank_ends_its_gang_and_both_start_again(
    program: Program, guard: Guard, log: MergedLog, tmp_path: Path
) -> None:
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    dies_once = """
        import pathlib, sys, time
        mark = pathlib.Path(sys.argv[1], "died")
        time.sleep(0.3)
        if mark.exists():
            time.sleep(600)
        mark.touch()
        sys.exit(9)
    """
    gang = (program("learner-0", waits), program("learner-1", dies_once))
    service = Service(ServiceSpec("learner", gang, finishes=True), guard, log, max_restarts=1)
    running = asyncio.create_task(service.run())
    while len(log.tail("learner-0")) < 2:
        await asyncio.sleep(0.02)
    first, second = map(int, log.tail("learner-0"))
    assert first != second
    wait_until_dead([first])
    running.cancel()
    await service.stop(asyncio.Event())
    wait_until_dead([second])


async def test_the_rank_with_the_configuration_error_is_the_cause(
    program: Program, guard: Guard, log: MergedLog
) -> None:
    notices = program("learner-0", "raise SystemExit(1)")
    causes = program("learner-1", "import time; time.sleep(0.3); print('mmr1: error: bad thing'); raise SystemExit(2)")
    with pytest.raises(ConfigurationError, match="learner-1: bad thing"):
        await Service(ServiceSpec("learner", (notices, causes), finishes=True), guard, log, max_restarts=5).run()


async def test_a_second_stop_request_does_not_wait(program: Program, guard: Guard, log: MergedLog) -> None:
    process = program(
        "reward", "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    service = Service(ServiceSpec("reward", (process,), stop_deadline_seconds=60.0), guard, log, 0)
    running = asyncio.create_task(service.run())
    while not log.tail("reward"):
        await asyncio.sleep(0.02)
    running.cancel()
    urgent = asyncio.Event()
    urgent.set()
    async with asyncio.timeout(5):
        await service.stop(urgent)
    assert not service.running


async def test_quiet_keeps_lines_in_files(program: Program, guard: Guard, tmp_path: Path, screen: io.StringIO) -> None:
    from rich.console import Console

    with MergedLog(Console(file=screen), tmp_path / "logs", quiet=True) as log:
        spec = ServiceSpec("learner", (program("learner", "print('hello')"),), finishes=True)
        await Service(spec, guard, log, 0).run()
    assert screen.getvalue() == ""
    assert (tmp_path / "logs" / "learner.log").read_text() == "hello\n"
