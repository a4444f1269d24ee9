"""What passes between the server and one of its worker processes: frames over a socket, progress in shared memory.

Both sides build on this file. It starts no process and scores nothing. Frames are length-prefixed JSON, never pickle:
a worker runs other people's code, so nothing that it sends may do more than be wrong.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic_core import to_json

from .api import Item, Outcome
from .scoring import Scored

_LENGTH = struct.Struct("!I")
# Seconds, reward (not a number for none), outcome, whether the item was refused, length of the result's JSON.
_SCORED = struct.Struct("!dd16s?I")
# `Progress` is one number: microseconds of the monotonic clock (51 bits, 71 years), then the position plus one.
_PROGRESS_BYTES = 8
_POSITION_BITS = 12  # a frame holds far fewer items
_RESTING = -1
_CODES = {outcome: outcome.value.encode().ljust(16) for outcome in Outcome}
_OUTCOMES = {code: outcome for outcome, code in _CODES.items()}
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


def encode_item(item: Item) -> bytes:
    """Raises ValueError for what no JSON can hold."""
    # Numbers too large for a float are infinite by now; as constants they stay what they are, not null. A model would
    # be written by its own settings, so it is its fields that are given here.
    return to_json(item.__dict__, inf_nan_mode="constants")


def join_items(encoded: Iterable[bytes]) -> bytes:
    """A frame's payload, of what `encode_item` has made."""
    return b"[%b]" % b",".join(encoded)


def decode_items(payload: bytes) -> list[Item]:
    """Raises ValidationError."""
    return _ITEMS.validate_json(payload)


def encode_scored(scored: Iterable[Scored]) -> bytes:
    """The results of a frame, in the order of its items; none when it could not be read.

    Raises nothing that `Scored.encoded` does not.
    """
    parts: list[bytes] = []
    for one in scored:
        reward = math.nan if one.reward is None else one.reward
        head = _SCORED.pack(one.seconds, reward, _CODES[one.outcome], one.refused, len(one.encoded))
        parts += (head, one.encoded)
    return b"".join(parts)


def decode_scored(payload: bytes) -> list[Scored]:
    """Raises ValueError when the payload is not what `encode_scored` makes."""
    scored = []
    begin = 0
    while begin < len(payload):
        if begin + _SCORED.size > len(payload):
            raise ValueError("a result's head is cut off")
        seconds, number, code, refused, length = _SCORED.unpack_from(payload, begin)
        begin += _SCORED.size
        encoded = payload[begin : begin + length]
        begin += length
        outcome = _OUTCOMES.get(code)
        reward = number if math.isfinite(number) else None
        if len(encoded) != length or encoded[:1] != b"{" or encoded[-1:] != b"}":
            raise ValueError("a result is cut off")
        if outcome is None or outcome.has_reward != (reward is not None):
            raise ValueError("a result has no outcome that there is")
        scored.append(Scored.from_json(encoded, outcome, reward, seconds, refused=refused))
    return scored


class Progress:
    """Which item of its frame a worker is scoring, and since when: readable while it hangs, and after it has died.

    A worker sends a frame's results together, so silence does not tell which item is late; this does, and costs no
    system call.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _PROGRESS_BYTES)
        # Position and time are one aligned number, so that no reader ever sees half of a change. Not through `struct`:
        # its `pack_into` writes zeros first.
        self._state = memoryview(self._memory).cast("Q")

    @staticmethod
    def new_descriptor() -> int:
        """A file in memory that both processes map; the caller closes the descriptor. Raises OSError."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("mmr1-reward-progress")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _PROGRESS_BYTES)  # zeros: at rest
        return descriptor

    def begin(self, position: int, counts_from: float) -> None:
        """The worker begins with an item. `counts_from`: when its deadline starts to run, on the monotonic clock."""
        self._state[0] = int(counts_from * 1e6) << _POSITION_BITS | position + 1

    def rest(self) -> None:
        """The worker has no item in hand."""
        self.begin(_RESTING, time.monotonic())

    def look(self) -> tuple[int, float]:
        """Position within the frame, from 0 and negative while the worker rests, and since when: of one moment."""
        state = self._state[0]
        return (state & (1 << _POSITION_BITS) - 1) - 1, (state >> _POSITION_BITS) / 1e6

    def close(self) -> None:
        self._state.release()
        self._memory.close()
