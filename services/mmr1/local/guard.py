"""A small process that outlives a killed supervisor just long enough to end what that supervisor had started.

It reads process group ids from a pipe whose other end the supervisor holds. When the pipe closes, however the
supervisor ended (SIGKILL and the out-of-memory killer included), every group still listed gets SIGTERM, then SIGKILL.
PR_SET_PDEATHSIG reaches only direct children; the vLLM engine is a grandchild.

Run as a file with `-I -S`, so this module imports nothing of the project and little else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 3.0
POLL_SECONDS = 0.05


class Guard:
    """The supervisor's side. Use as a context manager around everything that starts processes."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guard:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def add(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        self._groups.discard(group)
        if self._process is not None:  # an end that is noticed after the guard's own needs no word
            self._tell(f"-{group}\n")

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _tell(self, line: str) -> None:
        try:
            self._write(line)
        except BrokenPipeError:  # somebody killed the guard: a new one takes over all that is known
            self._start()
            self._write("".join(f"+{group}\n" for group in self._groups))

    def _write(self, text: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("the guard is used outside its context")
        os.write(self._process.stdin.fileno(), text.encode())


def watch(descriptor: int) -> None:
    """Follow the pipe to its end, then end every group that is still listed."""
    groups: set[int] = set()
    with os.fdopen(descriptor) as lines:
        for line in lines:
            group = int(line[1:])
            groups.add(group) if line[0] == "+" else groups.discard(group)
    _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while groups and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        groups = _signal(groups, 0)
    _signal(groups, signal.SIGKILL)


def _signal(groups: set[int], number: int) -> set[int]:
    """Signal every group; returns those that exist. 0 only asks."""
    alive = set()
    for group in groups:
        try:
            os.killpg(group, number)
            alive.add(group)
        except ProcessLookupError:
            continue
    return alive


if __name__ == "__main__":
    for quiet in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(quiet, signal.SIG_IGN)
    watch(sys.stdin.fileno())
