"""The receiving end of a transfer group, in vLLM's worker process: how bytes of a bucket get here.

Over gloo they go through the hosts' memory, over NCCL from GPU to GPU; over CUDA's interprocess memory the learner's
buffer is read in place, because NCCL refuses two members on one GPU. All of them meet at the learner's store and end
when it does. This file knows no tensors' names and no engine.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import torch
from torch._C._distributed_c10d import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore

from mmr1.nccl import ID_BYTES, Communicator, NcclError
from mmr1_rollout_server.interface import address_towards

TRANSPORTS = ("gloo", "nccl", "ipc")
# The learner listens before it calls: where nobody does it has given this group up, and the next one must not wait.
CONNECT_LIMIT = timedelta(seconds=5)
_POLL_SECONDS = 0.00005
_ASK_SECONDS = 0.2


class Group(Protocol):
    """One transfer group, joined. Every wait has an end."""

    device: torch.device  # where buffers are
    num_ahead: int  # buffers that may be posted before the first of them is taken

    def post(self, buffer: torch.Tensor, deadline_seconds: float) -> None:
        """Say where the next broadcast goes (flat uint8); it may begin. Raises what `take` does."""

    def take(self, deadline_seconds: float) -> torch.Tensor:
        """The first posted buffer, filled from rank 0. Raises RuntimeError when that is gone or the time is over."""

    def close(self) -> None:
        """Leave, also in the middle of a broadcast."""


def join(
    transport: str,
    address: str,
    port: int,
    prefix: str,
    rank: int,
    world_size: int,
    seconds: float,
    device: torch.device,
) -> Group:
    """Meet the learner, and over gloo and NCCL the other receivers.

    Raises:
        ValueError: the transport is unknown, or needs a GPU and this engine has none.
        RuntimeError: they did not come in time.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"transport {transport!r} is not one of {', '.join(TRANSPORTS)}")
    if transport != "gloo" and device.type != "cuda":
        raise ValueError(f"transport {transport} carries weights from GPU to GPU, and this engine runs on the CPU")
    limit = timedelta(seconds=seconds)
    store = TCPStore(
        address, port, world_size, is_master=False, timeout=min(limit, CONNECT_LIMIT), wait_for_workers=False
    )
    store.set_timeout(limit)
    meeting = PrefixStore(prefix, store)
    if transport == "nccl":
        return NcclGroup(meeting, rank, world_size, seconds, device)
    if transport == "ipc":
        return IpcGroup(meeting, rank, device)
    return GlooGroup(meeting, rank, world_size, limit, address)


class GlooGroup:
    """A process group beside torch.distributed's own: no global state.

    Buffers are in the host's memory; loading copies them to where the model is.
    """

    device = torch.device("cpu")
    num_ahead = 0

    def __init__(self, store: PrefixStore, rank: int, world_size: int, limit: timedelta, towards: str) -> None:
        self._posted: deque[torch.Tensor] = deque()
        # Without a device of its own, gloo listens where this machine's name leads, which may be a public network.
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = limit
        options._devices = [ProcessGroupGloo.create_device(hostname=address_towards(towards))]
        self._group = ProcessGroupGloo(store, rank, world_size, options)

    def post(self, buffer: torch.Tensor, deadline_seconds: float) -> None:
        self._posted.append(buffer)

    def take(self, deadline_seconds: float) -> torch.Tensor:
        buffer = self._posted.popleft()
        limit = timedelta(seconds=deadline_seconds)
        self._group.set_timeout(limit)
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._group.broadcast([buffer], options).wait(limit)  # type: ignore[attr-defined]
        return buffer

    def close(self) -> None:
        self._group.abort()


class NcclGroup:
    """A communicator of its own, on a stream of its own; whoever waits for it looks at the clock and at the learner.

    The next broadcast is under way while what has arrived is being loaded. NCCL does not notice a peer that is gone
    when both are on one machine: the learner's store, which ends with the learner, says so.
    """

    num_ahead = 2

    def __init__(self, store: PrefixStore, rank: int, world_size: int, seconds: float, device: torch.device) -> None:
        self.device = device
        self._posted: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        identity = store.get("nccl")
        assert len(identity) == ID_BYTES
        self._store = store
        self._asked: Asked | None = None
        self._last_asked = time.monotonic()
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._communicator = Communicator(identity, rank, world_size, seconds, self._watch)

    def post(self, buffer: torch.Tensor, deadline_seconds: float) -> None:
        end = time.monotonic() + deadline_seconds
        with torch.cuda.device(self.device):
            self._stream.wait_stream(torch.cuda.current_stream())  # what used the buffer's memory before has ended
            self._communicator.broadcast(buffer.data_ptr(), buffer.numel(), self._stream.cuda_stream, end)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
            self._posted.append((buffer, arrived))

    def take(self, deadline_seconds: float) -> torch.Tensor:
        end = time.monotonic() + deadline_seconds
        buffer, arrived = self._posted.popleft()
        while not arrived.query():  # type: ignore[no-untyped-call]
            self._watch()
            if time.monotonic() > end:
                raise NcclError(f"the broadcast did not end within {deadline_seconds:g} s")
            time.sleep(_POLL_SECONDS)
        self._communicator.look()
        return buffer

    def close(self) -> None:
        with torch.cuda.device(self.device):
            self._communicator.abort()

    def _watch(self) -> None:
        """Ask the learner's store now and then: it fails with the learner, or when that has given this group up."""
        if self._asked is not None and self._asked.answered(0):
            self._asked.check()
            self._asked = None
        if self._asked is None and time.monotonic() - self._last_asked > _ASK_SECONDS:
            self._last_asked = time.monotonic()
            self._asked = Asked(lambda: self._store.check(["nccl"]))


class IpcGroup:
    """The learner's own buffer, on the GPU that both use: mapped into this process, copied from bucket by bucket."""

    num_ahead = 0

    def __init__(self, store: PrefixStore, rank: int, device: torch.device) -> None:
        self.device = device
        self._store = store
        self._rank = rank
        self._num_received = 0
        self._posted: deque[torch.Tensor] = deque()
        described = json.loads(store.get(f"buffer/{rank}"))
        with torch.cuda.device(device):
            storage = torch.UntypedStorage._new_shared_cuda(
                torch.cuda.current_device(),  # the learner may number the same GPU differently
                bytes.fromhex(described["handle"]),
                described["num_bytes"],
                described["offset_bytes"],
                bytes.fromhex(described["counter"]),
                described["counter_offset"],
                bytes.fromhex(described["event"]),
                described["event_sync_required"],
            )
            self._buffer: torch.Tensor | None = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)

    def post(self, buffer: torch.Tensor, deadline_seconds: float) -> None:
        self._posted.append(buffer)

    def take(self, deadline_seconds: float) -> torch.Tensor:
        assert self._buffer is not None
        buffer = self._posted.popleft()
        self._num_received += 1
        sent = f"sent/{self._num_received}"
        asked = Asked(lambda: self._store.wait([sent], timedelta(seconds=deadline_seconds)))
        if not asked.answered(deadline_seconds):
            raise RuntimeError(f"the learner sent nothing within {deadline_seconds:g} s")
        asked.check()
        with torch.cuda.device(self.device):
            buffer.copy_(self._buffer[: buffer.numel()])
            torch.cuda.current_stream().synchronize()
        self._store.set(f"taken/{self._num_received}/{self._rank}", "")
        return buffer

    def close(self) -> None:
        self._buffer = None


class Asked:
    """A question to the learner's store, in a thread: a learner that is frozen lets even those with a deadline wait."""

    def __init__(self, question: Callable[[], object]) -> None:
        self._question = question
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def answered(self, seconds: float) -> bool:
        """Whether there is an answer, or no way to one any more, within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raises what the store raised."""
        if self._error is not None:
            raise self._error

    def _ask(self) -> None:
        try:
            self._question()
        except Exception as error:
            self._error = error
