"""A Redis that is frozen ends a wait; it does not hold the learner for ever."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mmr1.errors import ConfigurationError, StaleWriterError
from mmr1.streams import RunQueue
from mmr1_learner.connection import connect
from tests.conftest import free_port


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A Redis that this test may stop."""
    binary = shutil.which("redis-server", path=str(Path(sys.executable).parent)) or shutil.which("redis-server")
    assert binary
    port = free_port()
    process = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    yield process, f"redis://127.0.0.1:{port}/0"
    process.kill()
    process.wait(10)


def test_a_frozen_redis_is_an_error_that_a_restart_may_mend(own_redis: tuple[subprocess.Popen[bytes], str]) -> None:
    process, url = own_redis
    queue = RunQueue(connect(url, answer_seconds=1.0), "test")
    queue.become_writer()
    process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(redis.TimeoutError) as caught:
        queue.read(1)
    assert time.monotonic() - begun < 5.0, "asked once: what a lost answer has read would be read by nobody"
    assert not isinstance(caught.value, ConfigurationError | StaleWriterError)
    process.send_signal(signal.SIGCONT)
    assert queue.read(1) == []
