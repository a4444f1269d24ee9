"""Rank 0 of the group that carries weights: beside torch.distributed's own, no global state, and every wait has an end.

Here is where its members meet, and the group over gloo, in the hosts' memory; `device_collective.py` has those between
GPUs. Knows bytes and how many take part. What they mean, and who the others are, `weights.py` knows.
"""

from __future__ import annotations

import socket
import uuid
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
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


class Meeting(ABC):
    """The store at which the members of one group find each other; it ends with the group.

    `join`, `send` and `finish` of a group block, deaf to signals: call them in a thread. `close`, from another one,
    ends them.
    """

    device = torch.device("cpu")  # where what is sent must be

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
        client = TCPStore(host, self.port, world_size, is_master=False, timeout=limit, wait_for_workers=False)
        self._meeting = PrefixStore(self.prefix, client)

    @abstractmethod
    def join(self) -> None:
        """Meet the servers, which join at the same time.

        Raises:
            WeightUpdateError: one did not come in time, or `close` was called.
        """

    @abstractmethod
    def send(self, buffer: torch.Tensor) -> None:
        """Broadcast flat bytes. They may still be on their way, and `buffer` must stay as it is until `finish`.

        Raises:
            WeightUpdateError: a receiver is gone, or the time is over.
        """

    @abstractmethod
    def finish(self) -> None:
        """Wait until everything has left. Raises what `send` does."""

    def sending(self, made: torch.cuda.Event | None) -> AbstractContextManager[Any]:
        """Inside, what is computed for `send` is computed after `made`, beside everything else that the device does."""
        return nullcontext()

    def close(self) -> None:
        """Leave, and end whatever still waits for the others, here and there."""
        self._store = None


class Collective(Meeting):
    """A group over gloo that is formed once and given up when anything fails."""

    def __init__(self, host: str, world_size: int, deadline_seconds: float) -> None:
        super().__init__(host, world_size, deadline_seconds)
        self._group: Any = None
        self._options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        self._options._timeout = self._limit
        if host not in _EVERYWHERE:
            self._options._devices = [ProcessGroupGloo.create_device(hostname=host)]
        else:
            self._options._devices = [ProcessGroupGloo.create_default_device()]

    def join(self) -> None:
        try:
            self._group = ProcessGroupGloo(self._meeting, 0, self._world_size, self._options)
        except RuntimeError as error:
            raise WeightUpdateError(f"the transfer group did not form: {first_line(error)}") from error

    def send(self, buffer: torch.Tensor) -> None:
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        group = self._group
        if group is None:
            raise WeightUpdateError("the transfer group was closed before the broadcast")
        try:
            group.broadcast([buffer], options).wait(self._limit)
        except RuntimeError as error:
            raise WeightUpdateError(f"a receiver was lost during the broadcast: {first_line(error)}") from error

    def finish(self) -> None:
        pass  # `send` has waited

    def close(self) -> None:
        group, self._group = self._group, None  # without a group its threads end, before the interpreter does
        if group is not None:
            group.abort()
        super().close()


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
