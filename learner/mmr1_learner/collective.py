"""Rank 0 of the group that carries weights: beside torch.distributed's own, no global state, and every wait has an end.

Knows bytes and how many take part. What they mean, and who the others are, `weights.py` knows.
"""

from __future__ import annotations

import socket
import uuid
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import (  # type: ignore[attr-defined]
    BroadcastOptions,
    PrefixStore,
    ProcessGroupGloo,
    TCPStore,
)

from mmr1.errors import WeightUpdateError

_EVERYWHERE = ("0.0.0.0", "::")


class Collective:
    """A group that is formed once and given up when anything fails.

    `join` and `send` block in C++, deaf to signals: call them in a thread. `close`, from another one, ends both.
    """

    def __init__(self, host: str, world_size: int, deadline_seconds: float) -> None:
        self.prefix = uuid.uuid4().hex  # a late member of an older group meets nobody
        self._world_size = world_size
        self._limit = limit = timedelta(seconds=deadline_seconds)
        # By default the store listens on every network, and gloo where this machine's name leads.
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = listener.getsockname()[1]
        self._store: Any = TCPStore(
            host,
            self.port,
            world_size,
            is_master=True,
            timeout=limit,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        # A connection of its own, so that `join` fails at once when `close` ends the store.
        self._client = TCPStore(host, self.port, world_size, is_master=False, timeout=limit, wait_for_workers=False)
        self._group: Any = None
        self._options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        self._options._timeout = limit
        if host not in _EVERYWHERE:
            self._options._devices = [ProcessGroupGloo.create_device(hostname=host)]
        else:
            self._options._devices = [ProcessGroupGloo.create_default_device()]

    def join(self) -> None:
        """Meet the servers, which join at the same time.

        Raises:
            WeightUpdateError: one did not come in time, or `close` was called.
        """
        try:
            store = PrefixStore(self.prefix, self._client)
            self._group = ProcessGroupGloo(store, 0, self._world_size, self._options)
        except RuntimeError as error:
            raise WeightUpdateError(f"the transfer group did not form: {_first_line(error)}") from error

    def send(self, buffer: torch.Tensor) -> None:
        """Broadcast flat bytes.

        Raises:
            WeightUpdateError: a receiver is gone, or the time is over.
        """
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        group = self._group
        if group is None:
            raise WeightUpdateError("the transfer group was closed before the broadcast")
        try:
            group.broadcast([buffer], options).wait(self._limit)
        except RuntimeError as error:
            raise WeightUpdateError(f"a receiver was lost during the broadcast: {_first_line(error)}") from error

    def close(self) -> None:
        """Leave, and end whatever still waits for the others, here and there."""
        group, self._group = self._group, None  # without a group its threads end, before the interpreter does
        if group is not None:
            group.abort()
        self._store = None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
