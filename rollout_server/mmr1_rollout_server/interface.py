"""Which of this machine's addresses leads to another machine. Sends nothing."""

from __future__ import annotations

import socket

_ANY_PORT = 9  # nothing is sent there


def address_towards(host: str) -> str:
    """The address that packets to `host` leave from: what to listen on for answers, and for nobody else.

    Raises:
        OSError: `host` has no address, or no way leads there.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # of a datagram socket: it only chooses the way
        return str(probe.getsockname()[0])
