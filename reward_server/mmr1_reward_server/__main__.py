"""The command `mmr1-reward-server`: options, port, signals. What is served is the app's business."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from . import __version__
from .app import create_app
from .connections import Watch
from .descriptors import Listener, bounded, end_of_connections, raise_limit
from .explaining import describe, explain, read_item
from .logs import configure_logging
from .plugins import PluginError, build_registry, import_from_here
from .refusing import refusals
from .scoring import WorkersCannotStart
from .settings import PROGRAM, Settings, SettingsError, parse_settings
from .tls import tls_options

logger = logging.getLogger(__name__)

_CONFIGURATION_ERROR = 2
_BACKLOG = 2048
_TICKS_BETWEEN_LOOKS = 10  # of uvicorn's, a tenth of a second each
_SIGNAL_SECONDS = 0.2  # until a signal is noticed while workers start


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C. Exit codes: 0 drained, 2 something the user must change, 1 anything else."""
    try:
        settings = parse_settings(argv)
        if settings.answers_once:
            return answer_once(settings)
        configure_logging()
        raise_limit()
        with bind(settings.host, settings.port) as listener:
            return serve(settings, listener)
    except (SettingsError, PluginError, WorkersCannotStart) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return _CONFIGURATION_ERROR


def answer_once(settings: Settings) -> int:
    """What could be asked of the server, or how it scores items, without starting it.

    Raises PluginError, and SettingsError for what holds no item.
    """
    if settings.reward:
        import_from_here()
    registry = build_registry(settings.reward)
    if settings.list_tasks:
        print("\n".join(task.name for task in registry))
    elif settings.describe_tasks:
        print(describe(registry).model_dump_json())
    elif settings.refusals:
        for line in refusals(registry, sys.stdin, max_response_chars=settings.max_response_chars):
            print(line, flush=True)  # whoever asks waits for it before asking more
    else:
        item = read_item(str(settings.explain))
        print(explain(registry, item, max_response_chars=settings.max_response_chars).model_dump_json())
    return 0


def bind(host: str, port: int) -> Listener:
    """A listening socket, so that a port in use is known before anything starts. Raises SettingsError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(f"--host {host}: {error.strerror or error}; give an address of this machine") from None
    listener = Listener(family, kind, protocol)
    try:
        # A port that a server has just left may be taken again at once; one that another server holds may not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise SettingsError(
            f"cannot listen on {host} port {port}: {reason}; stop what holds it or choose another with --port"
        ) from None
    return listener


def serve(settings: Settings, listener: Listener) -> int:
    """Runs the server on a listening socket until a signal has it drained.

    Raises SettingsError, PluginError, and WorkersCannotStart, all before the first request is taken.
    """
    listener.end = end_of_connections(settings.workers)
    if settings.reward:
        import_from_here()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        proxy_headers=False,  # nothing here depends on who asks
        backlog=_BACKLOG,
        # Longer than the client keeps idle connections, so that it is never the server who drops one about to be used.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        **tls_options(settings),
    )
    server = _Server(config, app, listener, Watch(settings.body_seconds))

    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    # Uvicorn has its own handlers while it runs, and afterwards raises what it caught once more: with these that is a
    # clean end, and a signal that comes before uvicorn's are in place is not lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.run(sockets=[listener])
    logger.info("stopped")
    return 0 if server.started or server.should_exit else 1


class _Server(uvicorn.Server):
    """Uvicorn's, except that a server whose workers do not start ends with that error, and never listens.

    And it has an eye on its connections; none gets a descriptor that is kept for workers.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, listener: Listener, watch: Watch) -> None:
        super().__init__(config)
        self._app = app
        self._listener = listener
        self._watch = watch

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        starting = asyncio.ensure_future(self._app.state.scoring.start())
        while not starting.done():
            await asyncio.wait({starting}, timeout=_SIGNAL_SECONDS)
            if self.should_exit:
                return
        starting.result()
        if self._listener.end is not None:
            protocol: Any = self.config.http_protocol_class  # uvicorn has loaded it by now
            self.config.http_protocol_class = bounded(protocol, self._listener.end)
        await super().startup(sockets)
        gc.freeze()  # what is loaded by now stays, and need not be looked through again
        host, port = self._listener.getsockname()[:2]
        fields = {"host": host, "port": port, "tasks": self._app.state.num_tasks, "version": __version__}
        logger.info("listening", extra={"fields": fields})

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_BETWEEN_LOOKS == 0:
            self._watch.look(self.server_state.connections, time.monotonic())
        return await super().on_tick(counter)


if __name__ == "__main__":
    sys.exit(main())
