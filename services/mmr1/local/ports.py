"""Which ports a run listens on, and who holds one that is taken. Linux's /proc is read; nothing is connected to."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError

LISTENING = "0A"  # of /proc/net/tcp


@dataclass(frozen=True, slots=True)
class Port:
    """`option` moves it; `user` listens there."""

    number: int
    host: str
    option: str
    user: str


def ports_of(config: RunConfig) -> list[Port]:
    """Every port that `mmr1 up` will listen on with this configuration."""
    host = config.host
    ports = []
    if config.redis_url is None:
        ports.append(Port(config.redis_port, "127.0.0.1", "redis_port", "Redis"))
    ports += evaluation_ports(config, starts_rollouts=True)
    ports.append(Port(config.learner_metrics_port, host, "learner_metrics_port", "the learner's metrics"))
    ports.append(Port(config.learner_master_port, "127.0.0.1", "learner_master_port", "the learner's ranks"))
    return ports


def evaluation_ports(config: RunConfig, *, starts_rollouts: bool) -> list[Port]:
    """Those of the reward server and of the rollout servers, as far as they are started: all that `mmr1 eval` takes."""
    host = config.host
    ports = []
    if config.reward_url is None:
        ports.append(Port(config.reward_port, host, "reward_port", "the reward server"))
    for index in range(config.rollout_replicas if starts_rollouts else 0):
        name = f"rollout server {index}"
        ports.append(Port(config.rollout_port + index, host, "rollout_port", name))
        ports.append(Port(config.learner_metrics_port + 1 + index, host, "learner_metrics_port", f"{name}'s metrics"))
    return ports


def require_free(ports: list[Port]) -> None:
    """Raises ConfigurationError for the first port that two users share, is taken or is not a port."""
    seen: dict[int, Port] = {}
    for port in ports:
        other = seen.setdefault(port.number, port)
        if other is not port:
            raise ConfigurationError(
                f"port {port.number} is meant for both {other.user} and {port.user}; move one with "
                f"--{other.option} or --{port.option}"
            )
        _require_free(port)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def holder(number: int) -> str:
    """`pid 123 (redis-server)` where /proc shows who listens on a port, else an empty text."""
    inodes = _listening_inodes(number)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = {os.readlink(entry) for entry in (process / "fd").iterdir()}
            if links & inodes:
                return f"pid {process.name} ({(process / 'comm').read_text().strip()})"
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # of another user, or gone meanwhile
    return ""


def _require_free(port: Port) -> None:
    if not 0 < port.number < 2**16:
        raise ConfigurationError(f"port {port.number} for {port.user} is above 65535; lower --{port.option}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(port.host, port.number, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise ConfigurationError(
            f"host {port.host!r} does not resolve; set --host to an address of this machine"
        ) from None
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            raise ConfigurationError(_refusal(port, error)) from None


def _refusal(port: Port, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        who = holder(port.number)
        by = f" by {who}" if who else ""
        stop = "stop that process or " if who else ""
        return f"port {port.number} for {port.user} is in use{by}; {stop}move it with --{port.option}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {port.host!r} is not an address of this machine; set --host"
    return f"port {port.number} for {port.user}: {error.strerror}; move it with --{port.option}"


def _listening_inodes(number: int) -> set[str]:
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        for fields in map(str.split, lines):
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == number:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes
