"""One `mmr1 up` per run folder, one `mmr1 sft` per its own: a lock that the kernel releases however its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmr1.errors import ConfigurationError

LOCK_NAME = ".lock"


@contextmanager
def run_lock(run_dir: Path, command: str = "mmr1 up") -> Iterator[None]:
    """Create `run_dir` if needed and hold it for `command`, by whose name others are refused.

    Raises:
        ConfigurationError: it cannot be written, or another live command holds it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigurationError(
            f"run_dir {run_dir}: {error.strerror}; give --run_dir a folder that can be written"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"run_dir {run_dir} is in use by {_holder(descriptor)}; stop it or give another --run_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {command}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who wrote itself into the lock: it does so right after it has taken it, so a moment may know nothing yet."""
    pid, _, command = os.read(descriptor, 64).decode(errors="replace").strip().partition(" ")
    return f"another `{command}` (pid {pid})" if command else f"another command (pid {pid or 'unknown'})"
