"""Ends the engine's processes when the server's has ended without a word: killed for its memory, for instance.

vLLM's engine core outlives a killed parent, and on a GPU it would keep the memory from the server that replaces it.
Runs in vLLM's worker process, whose parent is the engine core. Linux only.
"""

from __future__ import annotations

import os
import select
import signal
import threading

SERVER_PID = "MMR1_ROLLOUT_SERVER_PID"


def guard() -> None:
    """Watch the server named by the environment, from a thread of its own."""
    pid = os.environ.get(SERVER_PID)
    if pid is None or int(pid) == os.getpid():
        return
    threading.Thread(target=_end_with, args=(int(pid),), name="orphan guard", daemon=True).start()


def _end_with(server_pid: int) -> None:
    parent = os.getppid()
    try:
        server = os.pidfd_open(server_pid)
    except ProcessLookupError:
        pass  # it has ended already
    else:
        select.select([server], [], [])
    if parent not in (1, server_pid):
        os.kill(parent, signal.SIGKILL)
    os._exit(1)
