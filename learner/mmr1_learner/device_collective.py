"""Rank 0 of a group that carries weights from GPU to GPU: over NCCL, or through one buffer on a GPU that all share.

NCCL refuses two members on one GPU; there the servers map the learner's buffer into their own processes (CUDA's
interprocess memory, which vLLM's `ipc` backend uses too) and copy from it, bucket by bucket. Knows bytes, like
`collective.py`, which has the meeting.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from typing import Any

import torch

from mmr1.errors import WeightUpdateError
from mmr1.nccl import Communicator, NcclError, unique_id
from mmr1_learner.collective import Meeting, first_line

_MAX_IN_FLIGHT = 2  # broadcasts: the GPU has the next one while the first is waited for
_POLL_SECONDS = 0.00005


class NcclCollective(Meeting):
    """A communicator of its own, on a stream of its own, while the next bucket is put together on another.

    NCCL has no deadline, so every wait here looks at the clock. Both streams go before a step's: servers wait for them.
    Of the two threads that may be in here, the one that sends aborts the communicator: `close` only says so.
    """

    def __init__(self, host: str, world_size: int, deadline_seconds: float, device: torch.device) -> None:
        super().__init__(host, world_size, deadline_seconds)
        self.device = device
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._preparing = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._communicator: Communicator | None = None
        self._in_flight: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._closed = False
        self._inside = threading.Lock()  # held by whoever uses the communicator

    def join(self) -> None:
        with self._inside, torch.cuda.device(self.device):
            try:
                identity = unique_id()
                self._meeting.set("nccl", identity)  # type: ignore[arg-type]
                seconds = self._limit.total_seconds()
                self._communicator = Communicator(identity, 0, self._world_size, seconds, self._refuse_closed)
            except RuntimeError as error:
                raise WeightUpdateError(f"the transfer group did not form: {first_line(error)}") from error

    def sending(self, made: torch.cuda.Event | None) -> AbstractContextManager[Any]:
        return _after(made, self._preparing)

    def send(self, buffer: torch.Tensor) -> None:
        with self._inside, torch.cuda.device(self.device):
            end = time.monotonic() + self._limit.total_seconds()
            try:
                communicator = self._joined()
                self._stream.wait_stream(torch.cuda.current_stream())
                communicator.broadcast(buffer.data_ptr(), buffer.numel(), self._stream.cuda_stream, end)
                left = torch.cuda.Event()  # type: ignore[no-untyped-call]
                left.record(self._stream)
                self._in_flight.append((left, buffer))
                self._drain(_MAX_IN_FLIGHT - 1, end)
            except RuntimeError as error:
                raise self._lost(error) from error

    def finish(self) -> None:
        with self._inside, torch.cuda.device(self.device):
            try:
                self._drain(0, time.monotonic() + self._limit.total_seconds())
            except RuntimeError as error:
                raise self._lost(error) from error

    def close(self) -> None:
        self._closed = True
        if self._inside.acquire(blocking=False):  # else the thread inside hears it within a moment
            try:
                self._abort()
            finally:
                self._inside.release()
        super().close()

    def _drain(self, num_left: int, end: float) -> None:
        while len(self._in_flight) > num_left:
            if self._in_flight[0][0].query():  # type: ignore[no-untyped-call]
                self._in_flight.popleft()
                continue
            self._refuse_closed()
            if time.monotonic() > end:
                raise NcclError(f"the broadcast did not end within {self._limit.total_seconds():g} s")
            time.sleep(_POLL_SECONDS)
        self._joined().look()

    def _joined(self) -> Communicator:
        self._refuse_closed()
        if self._communicator is None:
            raise NcclError("the transfer group was closed before the broadcast")
        return self._communicator

    def _refuse_closed(self) -> None:
        if self._closed:
            raise NcclError("the transfer group was closed")

    def _lost(self, error: RuntimeError) -> WeightUpdateError:
        self._abort()
        return WeightUpdateError(f"a receiver was lost during the broadcast: {first_line(error)}")

    def _abort(self) -> None:
        communicator, self._communicator = self._communicator, None
        if communicator is not None:
            with torch.cuda.device(self.device):
                communicator.abort()
        self._in_flight.clear()


class IpcCollective(Meeting):
    """One buffer on the GPU that the learner and all servers use. A bucket is sent when every server has copied it.

    Args:
        buffer: as large as the largest bucket. One for a run's groups: torch keeps what a killed process had mapped.
    """

    def __init__(self, host: str, world_size: int, deadline_seconds: float, buffer: torch.Tensor) -> None:
        super().__init__(host, world_size, deadline_seconds)
        self.device = device = buffer.device
        self._ranks = range(1, world_size)
        self._buffer = buffer
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._num_sent = 0

    def join(self) -> None:
        try:
            for rank in self._ranks:
                self._meeting.set(f"buffer/{rank}", self._described())
        except RuntimeError as error:
            raise WeightUpdateError(f"the transfer group did not form: {first_line(error)}") from error

    def sending(self, made: torch.cuda.Event | None) -> AbstractContextManager[Any]:
        return _after(made, self._stream)

    def send(self, buffer: torch.Tensor) -> None:
        self._num_sent += 1
        sent, taken = f"sent/{self._num_sent}", [f"taken/{self._num_sent}/{rank}" for rank in self._ranks]
        try:
            with torch.cuda.device(self.device):
                self._buffer[: buffer.numel()].copy_(buffer)
                torch.cuda.current_stream().synchronize()
            self._meeting.set(sent, "")
            self._meeting.wait(taken, self._limit)
            for key in (sent, *taken):
                self._meeting.delete_key(key)
        except RuntimeError as error:
            raise WeightUpdateError(f"a receiver was lost during the broadcast: {first_line(error)}") from error

    def finish(self) -> None:
        pass  # `send` has waited

    def _described(self) -> str:
        """What another process needs to map the buffer. One description for each: torch counts who has it."""
        _, handle, num_bytes, offset, counter, counter_offset, event, must_sync = (
            self._buffer.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]
        )
        return json.dumps(
            {
                "handle": handle.hex(),
                "num_bytes": num_bytes,
                "offset_bytes": offset,
                "counter": counter.hex(),
                "counter_offset": counter_offset,
                "event": event.hex(),
                "event_sync_required": must_sync,
            }
        )


def _after(made: torch.cuda.Event | None, stream: torch.cuda.Stream) -> AbstractContextManager[Any]:
    """On `stream`, after `made`. Without it, after all that the device was told before."""
    if made is None:
        stream.wait_stream(torch.cuda.default_stream(stream.device))
    else:
        stream.wait_event(made)
    return torch.cuda.stream(stream)
