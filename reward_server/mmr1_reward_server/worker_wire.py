"""What passes between the server and one of its worker processes: frames over a socket, progress in shared memory.

Both sides build on this file. It starts no process and scores nothing. Frames are length-prefixed JSON, never pickle:
a worker runs other people's code, and what it sends is checked like anything else that comes from outside.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic_core import to_json

from .api import Item

_LENGTH = struct.Struct("!I")
_SCORED = struct.Struct("!dI")  # seconds, length of the result's JSON
_PROGRESS = struct.Struct("dq")  # what `Progress` keeps
_RESTING = -1
_ITEMS = TypeAdapter(list[Item])


class Hello(BaseModel):
    """A worker's first frame: it is ready, or it cannot be and says why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: str | None = None


def to_frame(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a stream of bytes into frames, whatever the pieces it comes in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that are complete with `data`."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield payload


def encode_items(items: Sequence[Item]) -> bytes:
    # Numbers too large for a float are infinite by now; as constants they stay what they are, not null. A model would
    # be written by its own settings, so it is its fields that are given here.
    return to_json([item.__dict__ for item in items], inf_nan_mode="constants")


def decode_items(payload: bytes) -> list[Item]:
    """Raises ValidationError."""
    return _ITEMS.validate_json(payload)


def encode_scored(scored: Iterable[tuple[float, bytes]]) -> bytes:
    """Each item's seconds and its result as JSON, in the order of the items."""
    return b"".join(_SCORED.pack(seconds, len(result)) + result for seconds, result in scored)


def decode_scored(payload: bytes) -> list[tuple[float, bytes]]:
    """Raises ValueError when the payload is not what `encode_scored` makes."""
    scored = []
    begin = 0
    while begin < len(payload):
        if begin + _SCORED.size > len(payload):
            raise ValueError("a result's head is cut off")
        seconds, length = _SCORED.unpack_from(payload, begin)
        begin += _SCORED.size
        if begin + length > len(payload):
            raise ValueError("a result is cut off")
        scored.append((seconds, payload[begin : begin + length]))
        begin += length
    return scored


class Progress:
    """Which item of its frame a worker is scoring, and since when: readable while it hangs, and after it has died.

    A worker sends a frame's results together, so silence does not tell which item is late; this does, and costs no
    system call.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _PROGRESS.size)

    @staticmethod
    def new_descriptor() -> int:
        """A file in memory that both processes map; the caller closes the descriptor."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("mmr1-reward-progress")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _PROGRESS.size)
        os.pwrite(descriptor, _PROGRESS.pack(0.0, _RESTING), 0)
        return descriptor

    def begin(self, position: int, counts_from: float) -> None:
        """The worker begins with an item. `counts_from`: when its deadline starts to run, on the monotonic clock."""
        # The time first: a reader between the two sees the old item with a newer time, and waits.
        _PROGRESS.pack_into(self._memory, 0, counts_from, self.position)
        _PROGRESS.pack_into(self._memory, 0, counts_from, position)

    def rest(self) -> None:
        """The worker has no item in hand."""
        self.begin(_RESTING, 0.0)

    @property
    def position(self) -> int:
        """Within the frame, from 0; negative while the worker rests."""
        return int(_PROGRESS.unpack_from(self._memory)[1])

    @property
    def counts_from(self) -> float:
        return float(_PROGRESS.unpack_from(self._memory)[0])

    def close(self) -> None:
        self._memory.close()
