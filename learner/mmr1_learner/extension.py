"""DeepSpeed's compiled extension, loaded by one process at a time and never waiting for a dead one.

torch guards the folder of an extension with a file that exists while somebody builds or checks it, and waits for it
without end. A process that is killed meanwhile leaves the file behind, and every later one would hang. Here learners
take turns by a lock that ends with its holder, and whoever has the turn removes a file that nobody alive holds open.
This file does not know what the extension computes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from mmr1_learner.errors import StopRequestedError

log = structlog.get_logger()

LOAD_SECONDS = 900.0  # compiling takes two minutes on two busy cores, and other ranks may come first
_LOOK_SECONDS = 0.1


def load_extension() -> None:
    """Have DeepSpeed's shared-memory extension loaded; nothing where its accelerator needs none.

    Raises:
        TimeoutError: another living process has held the folder for too long; the message names the file.
        StopRequestedError: SIGTERM meanwhile. The folder is left as it should be.
    """
    # Compiled code names the environment it was compiled for: one shared by two would be compiled anew at every turn.
    root = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))
    from deepspeed.accelerator import get_accelerator
    from deepspeed.comm.torch import build_shm_op
    from deepspeed.git_version_info import installed_ops

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    # Compiled with DeepSpeed, as in an image, there is nothing to wait for or to write.
    if installed_ops.get(builder.NAME):
        build_shm_op()
    else:
        load_alone(root / builder.NAME, build_shm_op)


def load_alone(folder: Path, load: Callable[[], object], seconds: float = LOAD_SECONDS) -> None:
    """Call `load` while no other learner uses `folder`, whose file `lock` is torch's.

    Raises TimeoutError and StopRequestedError as `load_extension`. A `load` that does not come back within `seconds`
    ends the process with a traceback, for nothing else can.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with _stoppable(), _turn(folder.with_name(f"{folder.name}.turn"), deadline):
        _remove_if_abandoned(folder / "lock", deadline)
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            load()
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM raises, so that torch's file is removed on the way out; by default it would end us where we stand."""

    def stop(*_: object) -> None:
        raise StopRequestedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _turn(path: Path, deadline: float) -> Iterator[None]:
    """Hold the lock at `path`. The kernel takes it back from a process that ends, however it ends."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _give_up_after(deadline, path)
                time.sleep(_LOOK_SECONDS)
        yield


def _remove_if_abandoned(lock: Path, deadline: float) -> None:
    """Wait while a living process, which is no learner, holds torch's file (it keeps it open); then it is gone."""
    while lock.exists():
        if not _is_open(lock):
            log.warning("removed the lock of a process that was killed", path=str(lock))
            lock.unlink(missing_ok=True)
            return
        _give_up_after(deadline, lock)
        time.sleep(_LOOK_SECONDS)


def _is_open(path: Path) -> bool:
    """Whether a process that we may look into has the file open."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            for descriptor in Path("/proc", process, "fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile, or no file
                    if descriptor.samefile(path):
                        return True
    return False


def _give_up_after(deadline: float, path: Path) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(f"another process has held {path} for too long; end it, or remove the file")
