"""NCCL with an end to every wait: a communicator of our own beside those of torch and vLLM, from plain bytes.

Both ends of a weight update use it. A communicator is formed without blocking, a broadcast is only put on a stream, and
whoever waits for it looks at the clock; `abort` frees a kernel that waits for a peer that is gone. Pointers and streams
are numbers here: this file imports no torch, and NCCL itself when the first communicator is made.

Functions and constants: NVIDIA's NCCL user guide, "API", and nccl.h (2.14 and later).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from typing import Any

ID_BYTES = 128

_SUCCESS, _IN_PROGRESS = 0, 7
_UINT8 = 1
_MAGIC, _CONFIG_VERSION = 0xCAFEBEEF, 21400  # the first version of NCCL whose configuration has `blocking`
_POLL_SECONDS = 0.00002


class NcclError(RuntimeError):
    """NCCL refused, a peer was lost, or the time was over. The communicator is of no use after it."""


class _UniqueId(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_byte * ID_BYTES),)


class _Config(ctypes.Structure):
    """ncclConfig_t up to the one field that matters; NCCL takes the rest from its defaults."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
        ("cga_cluster_size", ctypes.c_int),
    )


def unique_id() -> bytes:
    """What rank 0 tells the others: where a new communicator's members meet.

    Raises:
        NcclError: there is no NCCL here.
    """
    identity = _UniqueId()
    _check(_library().ncclGetUniqueId(ctypes.byref(identity)), "ncclGetUniqueId")
    return bytes(identity)


class Communicator:
    """This process's end. The CUDA device that is current when it is made is the one whose memory it sends.

    Args:
        seconds: for all members to come.
        watch: called while waiting, here and in `settle`; ends the wait by raising.

    Raises:
        NcclError: they did not come in time, or two of them are on one GPU.
    """

    def __init__(self, identity: bytes, rank: int, world_size: int, seconds: float, watch: Callable[[], None]) -> None:
        self._watch = watch
        self._nccl = _library()
        self._comm = ctypes.c_void_p()
        config = _Config(ctypes.sizeof(_Config), _MAGIC, _CONFIG_VERSION, 0, -(2**31))
        result = self._nccl.ncclCommInitRankConfig(
            ctypes.byref(self._comm), world_size, _UniqueId.from_buffer_copy(identity), rank, ctypes.byref(config)
        )
        try:
            if result != _IN_PROGRESS:
                _check(result, "ncclCommInitRankConfig")
            self.settle(time.monotonic() + seconds, "forming the group")
        except BaseException:
            self.abort()
            raise

    def broadcast(self, pointer: int, num_bytes: int, stream: int, end: float) -> None:
        """Put a broadcast from rank 0 on the stream; it has been sent when the stream has got there.

        Args:
            pointer: of device memory: what is sent on rank 0, where it goes elsewhere.
            end: by time.monotonic(); the first one may have to connect first.
        """
        place = ctypes.c_void_p(pointer)
        result = self._nccl.ncclBroadcast(place, place, num_bytes, _UINT8, 0, self._comm, ctypes.c_void_p(stream))
        if result == _IN_PROGRESS:
            self.settle(end, "connecting")
        else:
            _check(result, "ncclBroadcast")

    def settle(self, end: float, doing: str) -> None:
        """Wait until NCCL's own threads have done what was asked of them."""
        while (state := self._state()) == _IN_PROGRESS:
            self._watch()
            if time.monotonic() > end:
                raise NcclError(f"{doing}: the time is over")
            time.sleep(_POLL_SECONDS)
        _check(state, doing)

    def look(self) -> None:
        """Raises NcclError when NCCL has noticed a fault meanwhile."""
        state = self._state()
        if state != _IN_PROGRESS:
            _check(state, "broadcast")

    def abort(self) -> None:
        """Leave, whatever the others do: kernels that wait for them end, with nothing received."""
        comm, self._comm = self._comm, ctypes.c_void_p()
        if comm.value:
            self._nccl.ncclCommAbort(comm)

    def _state(self) -> int:
        if not self._comm.value:
            raise NcclError("the communicator was aborted")
        state = ctypes.c_int(_SUCCESS)
        _check(self._nccl.ncclCommGetAsyncError(self._comm, ctypes.byref(state)), "ncclCommGetAsyncError")
        return state.value


@cache
def _library() -> Any:
    """The NCCL that torch has loaded: asked for by its name, the linker gives the same one."""
    try:
        library = ctypes.CDLL("libnccl.so.2")
    except OSError as error:
        raise NcclError(f"NCCL cannot be loaded: {error}") from error
    library.ncclGetErrorString.restype = ctypes.c_char_p
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.ncclCommInitRankConfig.argtypes = [pointer, number, _UniqueId, number, pointer]
    library.ncclBroadcast.argtypes = [pointer, pointer, ctypes.c_size_t, number, number, pointer, pointer]
    library.ncclCommGetAsyncError.argtypes = [pointer, pointer]
    library.ncclCommAbort.argtypes = [pointer]
    return library


def _check(result: int, doing: str) -> None:
    if result != _SUCCESS:
        raise NcclError(f"{doing}: NCCL says {_library().ncclGetErrorString(result).decode()}")
