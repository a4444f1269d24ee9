"""A learner's calls to a Redis that may be away, full, read-only, or started anew: waited for, and told again.

Every script that a learner calls may be called twice, so a lost answer costs nothing but the call. A Redis that was
started anew may have forgotten its last second or two: what this learner has told it lately is told again, in the same
order, before anything else. This file knows no group and no prompt.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import (
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from mmr1.streams.scripts import Scripts, refusal

REMEMBERED_SECONDS = 30.0  # of what was told; Redis' file lacks two seconds at most
PAUSE_SECONDS = 0.5
SILENCE_SECONDS = 120.0
_TOLD = frozenset({"feed", "drop", "apply", "finish", "commit_version", "restore"})
_OBSTACLES = {
    "OOM command not allowed": "Redis is full (maxmemory)",
    "READONLY You can't write": "Redis is read-only: this is a replica",
    "MISCONF": "Redis cannot write to its disk",
    "NOREPLICAS": "Redis has too few replicas to write to",
}
# redis-py knows some by class and takes the code off their text. Inside a script Redis 6.2 puts its own words first.
_OBSTACLE_CLASSES = {
    OutOfMemoryError: _OBSTACLES["OOM command not allowed"],
    ReadOnlyError: _OBSTACLES["READONLY You can't write"],
    MasterDownError: "Redis is a replica that has lost its master",
}
_T = TypeVar("_T")


class RedisRestartedError(RedisError):
    """The server that answers is not the process that answered before."""


class RestartWatch:
    """Given to a client as `redis_connect_func`: a new connection to another Redis process is an error, once.

    A connection that breaks between two commands is made anew by the client without a word. Redis' own run_id tells
    whether the same process is at the other end.
    """

    def __init__(self) -> None:
        self._process: str | None = None

    def __call__(self, connection: Any) -> None:
        connection.on_connect()
        connection.send_command("INFO", "server")
        process = _run_id(connection.read_response())
        known, self._process = self._process, process
        if known not in (None, process):
            raise RedisRestartedError("Redis was started anew")


@dataclass(frozen=True, slots=True)
class Patience:
    """What a learner does while it waits for Redis.

    `tick` is called all the while and may raise. `paused` is told the reason when a wait begins, `resumed` when it is
    over. A Redis that refuses is waited for without end; one that does not answer, `silence_seconds`.
    """

    tick: Callable[[], None]
    paused: Callable[[str], None]
    resumed: Callable[[], None]
    silence_seconds: float = SILENCE_SECONDS


def obstacle(error: RedisError) -> str | None:
    """Why Redis refuses to write although it answers, or None."""
    for kind, reason in _OBSTACLE_CLASSES.items():
        if isinstance(error, kind):
            return reason
    return next((reason for words, reason in _OBSTACLES.items() if words in str(error)), None)


class WriterCalls:
    """The scripts of the run's one learner. `lost` is called when answers may have been lost, or forgotten.

    Its threads take turns: what was told must be told again in the order in which it was.
    """

    def __init__(self, redis: Redis, scripts: Scripts, patience: Patience | None, lost: Callable[[], None]) -> None:
        self._redis = redis
        self._scripts = scripts
        self._patience = patience
        self._lost = lost
        self._told: deque[tuple[float, str, tuple[Any, ...]]] = deque()
        self._restarted = False
        self._turn = threading.RLock()
        self.incarnation = 0

    def begin(self, become_writer: Callable[[], int]) -> int:
        """A new incarnation: nothing has been told yet."""
        self._told.clear()
        self._restarted = False
        self.incarnation = self.insist(become_writer)
        return self.incarnation

    def write(self, name: str, *arguments: str | bytes | int) -> Any:
        """One script with this learner's incarnation.

        Raises:
            StaleWriterError: a newer learner exists.
            RunForgottenError: Redis has been emptied.
        """
        with self._turns():
            result = self.insist(lambda: self._scripts.call(name, self.incarnation, *arguments))
            self.remember(name, *arguments)
        return result

    def remember(self, name: str, *arguments: Any) -> None:
        """It has been told this, and is told it again if it is started anew soon."""
        if name not in _TOLD or self._patience is None:
            return
        now = time.monotonic()
        self._told.append((now, name, arguments))
        while self._told[0][0] < now - REMEMBERED_SECONDS:
            self._told.popleft()

    def insist(self, call: Callable[[], _T]) -> _T:
        """Call until it is answered. Without patience, once."""
        with self._turns():
            return self._insist(call)

    def _insist(self, call: Callable[[], _T]) -> _T:
        wait = _Wait(self._patience)
        while True:
            try:
                if self._restarted:
                    self._tell_again()
                result = call()
            except RedisRestartedError:
                self._restarted = True
                continue
            except (ConnectionError, TimeoutError) as error:
                self._lost()
                if not wait.for_answer(str(error)):
                    raise
            except ResponseError as error:
                reason = obstacle(error)
                if reason is None or not wait.for_change(reason):
                    raise refusal(error) or error from None
                self._redis.connection_pool.disconnect()  # its name may lead to another server by now
            else:
                wait.over()
                return result

    @contextmanager
    def _turns(self) -> Iterator[None]:
        """While another thread waits for Redis, this one does what is to be done while waiting."""
        while not self._turn.acquire(timeout=PAUSE_SECONDS):
            if self._patience is not None:
                self._patience.tick()
        try:
            yield
        finally:
            self._turn.release()

    def _tell_again(self) -> None:
        self._scripts.call("rejoin", self.incarnation)
        for _, name, arguments in self._told:
            self._scripts.call(name, self.incarnation, *arguments)
        self._lost()
        self._restarted = False


class _Wait:
    """One wait: told of once, however often it is looked."""

    def __init__(self, patience: Patience | None) -> None:
        self._patience = patience
        self._reason = ""
        self._silent_since: float | None = None

    def for_answer(self, error: str) -> bool:
        """False: it has been silent for too long."""
        self._silent_since = self._silent_since or time.monotonic()
        if self._patience and time.monotonic() - self._silent_since > self._patience.silence_seconds:
            return False
        return self._pause(f"Redis does not answer: {error}", reset=False)

    def for_change(self, reason: str) -> bool:
        return self._pause(reason, reset=True)

    def over(self) -> None:
        if self._patience and self._reason:
            self._patience.resumed()

    def _pause(self, reason: str, reset: bool) -> bool:
        if self._patience is None:
            return False
        if reset:
            self._silent_since = None
        if not self._reason:
            self._patience.paused(reason)
        self._reason = reason
        self._patience.tick()
        time.sleep(PAUSE_SECONDS)
        return True


def _run_id(info: bytes | str) -> str:
    text = info.decode() if isinstance(info, bytes) else info
    return next((line.partition(":")[2] for line in text.splitlines() if line.startswith("run_id:")), "")
