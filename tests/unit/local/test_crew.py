"""Services beside some other work: started in turn, watched, and all gone at the end."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from mmr1.local.crew import Crew
from mmr1.local.guard import Guard
from mmr1.local.logs import MergedLog
from mmr1.local.service import ProcessSpec, ServiceFailedError, ServiceSpec
from tests.unit.local.processes import wait_until_dead

Program = Callable[..., ProcessSpec]

READY = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], "{name}").write_text(str(os.getpid()))
time.sleep(600)
"""


def spec(program: Program, name: str, folder: Path, source: str = READY) -> ServiceSpec:
    async def ready() -> bool:
        return (folder / name).exists()

    return ServiceSpec(name, (program(name, source.replace("{name}", name)),), ready)


async def test_work_goes_on_beside_services_that_are_gone_afterwards(
    tmp_path: Path, program: Program, log: MergedLog, guard: Guard
) -> None:
    crew = Crew(log, guard, max_restarts=0)

    async def work() -> int:
        await asyncio.sleep(0.1)
        return 7

    await crew.start([spec(program, "one", tmp_path), spec(program, "two", tmp_path)])
    pids = [int((tmp_path / name).read_text()) for name in ("one", "two")]
    assert await crew.watch(work()) == 7
    await crew.stop(asyncio.Event())
    wait_until_dead(pids)


async def test_a_service_that_fails_for_good_ends_the_work(
    tmp_path: Path, program: Program, log: MergedLog, guard: Guard, screen: io.StringIO
) -> None:
    crew = Crew(log, guard, max_restarts=0)
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    dying = READY.replace("time.sleep(600)", "time.sleep(0.5); sys.exit(5)")
    await crew.start([spec(program, "lasting", tmp_path), spec(program, "dying", tmp_path, dying)])
    with pytest.raises(ServiceFailedError, match="dying failed 1 times"):
        await crew.watch(work())
    assert ended.is_set()
    await crew.stop(asyncio.Event())
    wait_until_dead([int((tmp_path / "lasting").read_text())])
