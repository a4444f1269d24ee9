"""A redis-server that a test may kill, freeze, fill up, and start anew with an older file."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import redis

from mmr1.local.redis_server import find_redis_server, redis_command
from tests.conftest import free_port

# The machine's own Redis, when it has one: another version than the one that `make setup` brings.
SYSTEM_REDIS = shutil.which("redis-server", path="/usr/local/bin:/usr/bin:/bin")


class OwnRedis:
    """Started as `mmr1 up` starts it; `fsync` is Redis' appendfsync."""

    def __init__(self, folder: Path, fsync: str = "everysec", program: str | None = None) -> None:
        folder.mkdir()
        self._folder = folder
        self.program = program
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            *redis_command(Path(program or find_redis_server()), self.port, folder),
            "--appendfsync",
            fsync,
        ]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        client = self.client()
        for _ in range(500):
            try:
                client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.01)
        raise RuntimeError("redis-server did not come up")

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def follow(self, master: OwnRedis) -> None:
        """Become its replica, and be level with it."""
        client = self.client()
        client.execute_command("REPLICAOF", "127.0.0.1", str(master.port))
        for _ in range(1000):
            info: Any = client.info("replication")
            there: Any = master.client().info("replication")
            if info["master_link_status"] == "up" and info["slave_repl_offset"] == there["master_repl_offset"]:
                return
            time.sleep(0.01)
        raise RuntimeError("the replica did not become level with its master")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def settle(self) -> None:
        """Until everything is written to the file: `everysec` holds writes back while a flush is under way."""
        client = self.client()
        while True:
            info: Any = client.info("persistence")
            if not info["aof_pending_bio_fsync"] and not info["aof_buffer_length"]:
                return
            time.sleep(0.01)

    def restart(self) -> None:
        """SIGKILL, and a new process with the file that is there."""
        self.kill()
        self.start()

    def remember(self) -> None:
        """What a machine that loses power a moment later would find in the file."""
        self.settle()
        shutil.copytree(self._folder, self._past, dirs_exist_ok=True)

    def restart_in_the_past(self) -> None:
        """As after a lost power: everything since `remember` is forgotten."""
        self.kill()
        shutil.rmtree(self._folder)
        shutil.copytree(self._past, self._folder)
        self.start()

    @property
    def _past(self) -> Path:
        return self._folder.with_name(f"{self._folder.name}.past")
