"""A child and everything it has started end together, however the child, or its supervisor, ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mmr1.local.guard import Guard
from mmr1.local.process import ChildProcess
from tests.unit.local.processes import alive, wait_until_dead

# Prints the pid of a grandchild that ignores SIGTERM and keeps the output pipe open.
STUBBORN_GRANDCHILD = """
import signal, subprocess, sys, time
source = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", source])
print(child.pid, flush=True)
"""


def start(source: str, guard: Guard, lines: list[str]) -> ChildProcess:
    return ChildProcess.start([sys.executable, "-u", "-c", textwrap.dedent(source)], os.environ, guard, lines.append)


async def test_output_of_both_streams_arrives_line_by_line(guard: Guard) -> None:
    lines: list[str] = []
    child = start("import sys; print('one'); print('two', file=sys.stderr); sys.stdout.write('three')", guard, lines)
    assert await child.wait() == 0
    assert lines == ["one", "two", "three"]


async def test_a_line_without_end_and_bytes_that_are_no_text_do_no_harm(guard: Guard) -> None:
    lines: list[str] = []
    child = start("import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\\xff\\n')", guard, lines)
    assert await child.wait() == 0
    assert sum(map(len, lines)) == 300_001


async def test_the_exit_code_is_the_programs(guard: Guard) -> None:
    assert await start("raise SystemExit(7)", guard, []).wait() == 7


async def test_a_child_that_ends_takes_its_grandchildren_along(guard: Guard) -> None:
    lines: list[str] = []
    assert await start(STUBBORN_GRANDCHILD, guard, lines).wait() == 0
    wait_until_dead([int(lines[0])])


@pytest.mark.parametrize("ignores_sigterm", [False, True])
async def test_stop_asks_first_and_kills_at_the_deadline(guard: Guard, ignores_sigterm: bool) -> None:
    lines: list[str] = []
    ending = "signal.signal(15, signal.SIG_IGN)" if ignores_sigterm else "signal.signal(15, lambda *_: sys.exit(0))"
    child = start(f"{STUBBORN_GRANDCHILD}\n{ending}\nprint('up', flush=True)\ntime.sleep(600)", guard, lines)
    while len(lines) < 2:
        assert child.running
        await asyncio.sleep(0.02)
    assert await child.stop(0.5) == (-signal.SIGKILL if ignores_sigterm else 0)
    wait_until_dead([child.pid, int(lines[0])])


def test_a_killed_supervisor_leaves_nothing(tmp_path: Path) -> None:
    """SIGKILL gives the supervisor no chance to clean up; the guard does it."""
    supervisor = tmp_path / "supervisor.py"
    supervisor.write_text(
        textwrap.dedent(
            f"""
            import asyncio, os, sys
            from mmr1.local.guard import Guard
            from mmr1.local.process import ChildProcess

            async def main():
                with Guard() as guard:
                    source = {STUBBORN_GRANDCHILD!r} + "time.sleep(600)"
                    command = [sys.executable, "-u", "-c", source]
                    say = lambda line: print(child.pid, line, flush=True)
                    child = ChildProcess.start(command, os.environ, guard, say)
                    await child.wait()

            asyncio.run(main())
            """
        )
    )
    process = subprocess.Popen([sys.executable, str(supervisor)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2 and all(map(alive, pids))
    process.kill()
    process.wait()
    wait_until_dead(pids)
    process.stdout.close()


async def test_a_killed_guard_is_replaced(guard: Guard) -> None:
    first = start("import time; time.sleep(600)", guard, [])
    assert guard._process is not None
    guard._process.kill()
    guard._process.wait()
    second = start("import time; time.sleep(600)", guard, [])
    assert guard._process.poll() is None
    for child in (first, second):
        await child.stop(5.0)
