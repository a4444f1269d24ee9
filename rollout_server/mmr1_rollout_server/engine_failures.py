"""What vLLM's processes leave for the server when they fail to start: lines in a file that the environment names.

Runs in those processes. Knows no vLLM but the name of a logger, and nothing of what the lines mean.
"""

from __future__ import annotations

import logging
import os

FAILURES = "MMR1_ENGINE_FAILURES"  # names the file
_WORKERS_LOGGER = "vllm.v1.executor.multiproc_executor"


def listen() -> None:
    """In a worker: what vLLM logs when it fails to start is left for the server too."""
    if FAILURES in os.environ:
        logging.getLogger(_WORKERS_LOGGER).addHandler(_Leaving(logging.ERROR))


class _Leaving(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            leave(record.exc_info[1])


def leave(error: BaseException) -> None:
    """One line more in the file; the server that waited for it may be gone, and its folder with it."""
    try:
        with open(os.environ[FAILURES], "a") as file:
            file.write(one_line(error) + "\n")
    except (KeyError, OSError):
        pass


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
