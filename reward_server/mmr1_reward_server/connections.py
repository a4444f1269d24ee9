"""Closes connections on which nothing gets done: a request that does not arrive, an answer that nobody takes.

Uvicorn waits for ever for both, and each holds a descriptor and memory. Its connections are looked at from outside,
every now and then, so that a request in order costs nothing. It knows no request's content.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# What a connection has to get on with, and a value that changes when it does.
_Task = tuple[object, ...]


class Watch:
    """Ends connections that have been at one task for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Any, tuple[_Task, float]] = {}

    def look(self, connections: Iterable[Any], now: float) -> None:
        """To be called again and again, with all of uvicorn's HTTP connections, of either parser, and the time."""
        waiting: dict[Any, tuple[_Task, float]] = {}
        for connection in list(connections):
            task = _task_of_client(connection)
            if task is None:
                continue
            before = self._since.get(connection)
            since = now if before is None or before[0] != task else before[1]
            if now - since > self._seconds:
                connection.transport.abort()
            else:
                waiting[connection] = task, since
        self._since = waiting


def _task_of_client(connection: Any) -> _Task | None:
    """None when it is not the client that has to do something."""
    cycle, transport = connection.cycle, connection.transport  # a cycle is a request with its answer: the latest one
    if transport.is_closing():
        return "take the last bytes", transport.get_write_buffer_size()
    if connection.flow.write_paused:
        return "take the answer", transport.get_write_buffer_size()
    if connection.timeout_keep_alive_task is not None:
        return None  # it may send another request, for as long as uvicorn lets it
    if cycle is None or cycle.response_complete:
        return "send a request's head", cycle
    return ("send the body", cycle) if cycle.more_body else None
