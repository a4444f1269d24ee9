"""Descriptors: as many as the system grants, and some that no connection gets, so that workers can still be replaced.

A descriptor is the lowest that is free: a high one means that all below are taken, by whatever it is. This file knows
connections only as uvicorn's protocol classes, and workers only by their number.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from typing import Any

from .settings import SettingsError

_MOST = 65_536  # each connection costs memory, and some systems' hard limits are in the millions
_OWN = 32  # listeners, logs, the event loop, and files that a request opens for a moment
_PER_WORKER = 8  # while one starts; half of that afterwards
_FEWEST_CONNECTIONS = 32


def raise_limit() -> None:
    """Lets the process open as many files as it may allow itself; the usual 1,024 are few for a server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # some systems grant less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def end_of_connections(num_workers: int) -> int:
    """The first descriptor that no connection may have. Raises SettingsError when hardly any are left for them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MOST if soft == resource.RLIM_INFINITY else soft
    kept = _OWN + _PER_WORKER * num_workers
    if limit - kept < _FEWEST_CONNECTIONS:
        raise SettingsError(
            f"--workers {num_workers}: {limit} files may be open, and the workers need {kept}; "
            "raise the limit (ulimit -n) or start fewer"
        )
    return limit - kept


class Listener(socket.socket):
    """A listening socket that closes a connection at once whose descriptor is `end` or beyond.

    asyncio accepts all that wait, one after the other, before any protocol is told, so it has to be here. Of uvloop,
    which does not ask this object, `bounded` sees to it.
    """

    end: int | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if self.end is not None and connection.fileno() >= self.end:
            connection.close()
            raise ConnectionAbortedError("too many connections")  # as if the client had gone meanwhile
        return connection, address


def bounded(protocol: type[asyncio.Protocol], end: int) -> type[asyncio.Protocol]:
    """A protocol class of uvicorn's that closes a connection at once whose descriptor is `end` or beyond."""

    class Bounded(protocol):  # type: ignore[valid-type, misc]
        _refused = False

        def connection_made(self, transport: Any) -> None:
            connection = transport.get_extra_info("socket")
            if connection is not None and connection.fileno() >= end:
                self._refused = True
                transport.abort()
            else:
                super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            if not self._refused:
                super().data_received(data)

        def connection_lost(self, error: Exception | None) -> None:
            if not self._refused:
                super().connection_lost(error)

    return Bounded
