"""The command `mmr1-reward-server`: options, port, signals. What is served is the app's business."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn

from . import __version__
from .app import create_app
from .logs import configure_logging
from .registry import Registry
from .rewards import builtin_tasks
from .settings import PROGRAM, Settings, SettingsError, parse_settings

logger = logging.getLogger(__name__)

_CONFIGURATION_ERROR = 2
_BACKLOG = 2048


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C. Exit codes: 0 drained, 2 something the user must change, 1 anything else."""
    try:
        settings = parse_settings(argv)
        listener = bind(settings.host, settings.port)
    except SettingsError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return _CONFIGURATION_ERROR
    configure_logging()
    return serve(settings, builtin_tasks(), listener)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is known before anything starts. Raises SettingsError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(f"--host {host}: {error.strerror or error}; give an address of this machine") from None
    listener = socket.socket(family, kind, protocol)
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


def serve(settings: Settings, registry: Registry, listener: socket.socket) -> int:
    """Runs the server on a listening socket until a signal has it drained."""
    config = uvicorn.Config(
        create_app(settings, registry),
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        # Longer than the client keeps idle connections, so that it is never the server who drops one about to be used.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    server = uvicorn.Server(config)

    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    # Uvicorn has its own handlers while it runs, and afterwards raises what it caught once more: with these that is a
    # clean end, and a signal that comes before uvicorn's are in place is not lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    host, port = listener.getsockname()[:2]
    logger.info(
        "listening", extra={"fields": {"host": host, "port": port, "tasks": len(registry), "version": __version__}}
    )
    server.run(sockets=[listener])
    logger.info("stopped")
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
