"""A real `mmr1-reward-server` for the scripts beside this file, which drive it with the peers' own clients."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

_START_SECONDS = 60


@contextmanager
def running_server(*options: str) -> Iterator[str]:
    """Its URL, once it is ready; it is stopped at the end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "mmr1_reward_server", "--port", str(port), *options])
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{url}/readyz", process)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"no answer from {url} within {_START_SECONDS} s")


def check(what: str, got: object, expected: object) -> None:
    """One line for each thing that holds; the first that does not ends the script."""
    if got != expected:
        raise SystemExit(f"not ok: {what}: got {got!r}, expected {expected!r}")
    print(f"ok: {what}")
