"""A worker process: reads frames of items from a socket, scores them one by one, writes the results back.

It knows no HTTP and no deadline: whoever started it watches its progress and kills it. It ends when the socket closes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_json

from .api import Item, Outcome, Result, first_problem
from .logs import configure_logging
from .plugins import PluginError, build_registry
from .registry import Registry
from .scoring import Scored, scored_item, without_reward
from .worker_wire import Hello, Progress, decode_items, encode_scored, to_frame

logger = logging.getLogger(__name__)

# How long a task's first use in a process may take beyond an item's deadline: it may import megabytes.
WARM_UP_SECONDS = 60.0

# A frame that takes longer was guessed wrongly: what is left of it may go to another worker, or wait behind others.
_GIVE_BACK_SECONDS = 0.04
_LENGTH_BYTES = 4
_SURELY_READABLE_DEPTH = 100
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = 500  # of 1000, on top of what the memory in use counts
_CANNOT_START = 2


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    with socket.socket(fileno=options.socket) as pipe:
        _settle_in(options.parent)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server has gone
            try:
                registry = build_registry(options.reward)
            except PluginError as error:
                pipe.sendall(to_frame(to_json(Hello(problem=str(error)))))
                return _CANNOT_START
            pipe.sendall(to_frame(to_json(Hello())))
            _Worker(registry, options.max_response_chars, Progress(options.progress)).serve(pipe)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Started by mmr1-reward-server; not for use by hand.")
    parser.add_argument("--socket", type=int, required=True, help="descriptor of a connected socket")
    parser.add_argument("--progress", type=int, required=True, help="descriptor of the shared memory")
    parser.add_argument("--parent", type=int, required=True, help="process id of the server")
    parser.add_argument("--max-response-chars", type=int, required=True)
    parser.add_argument("--reward", action="append", default=[])
    return parser.parse_args(argv)


def _settle_in(parent: int) -> None:
    """Makes the process one that ends when the server does, and never before it because of the same signal."""
    # Ctrl-C and service managers signal the whole group; requests in progress still need the workers then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # A scorer that hangs reads no socket; without this it would outlive a server that was killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        # When memory runs out, it is a worker that has to go, not the server.
        _volunteer(Path("/proc/self/oom_score_adj"))
    configure_logging()
    sys.stdout = sys.stderr  # what a scorer prints must not pass for a log line


def _volunteer(adjustment: Path) -> None:
    """Makes the process a likelier one to be ended, never a less likely one. Where that is not allowed, as likely."""
    with contextlib.suppress(OSError, ValueError):
        if int(adjustment.read_text("ascii")) < _OOM_SCORE:
            adjustment.write_text(str(_OOM_SCORE), "ascii")


class _Worker:
    def __init__(self, registry: Registry, max_response_chars: int, progress: Progress) -> None:
        self._registry = registry
        self._max_response_chars = max_response_chars
        self._progress = progress
        self._cold_tasks = {task.name for task in registry}

    def serve(self, pipe: socket.socket) -> None:
        """Until the socket closes."""
        gc.freeze()  # what is loaded by now stays, and need not be looked through again
        with pipe.makefile("rb") as stream:
            while payload := _read_frame(stream):
                try:
                    items = decode_items(payload)
                except ValueError:  # one of them is to blame, and the server finds out which
                    logger.exception("items cannot be read")
                    pipe.sendall(to_frame(encode_scored([])))
                    continue
                self._score_frame(pipe, items)

    def _score_frame(self, pipe: socket.socket, items: Sequence[Item]) -> None:
        """Sends the results together. Fewer than there are items: the others are given back unscored."""
        scored: list[Scored] = []
        began = time.monotonic()
        give_back_at = began + _GIVE_BACK_SECONDS
        for position, item in enumerate(items):
            if item.task in self._cold_tasks:
                self._warm_up(item.task, position)
                began = time.monotonic()
            self._progress.begin(position, began)
            one = self._score(item)
            now = time.monotonic()
            one.seconds = now - began
            scored.append(one)
            began = now
            if now > give_back_at:
                break
        self._progress.rest()
        pipe.sendall(to_frame(encode_scored(scored)))

    def _warm_up(self, name: str, position: int) -> None:
        """Scores the task's example once, so that what the task loads on first use is not held against an item."""
        self._cold_tasks.discard(name)
        self._progress.begin(position, time.monotonic() + WARM_UP_SECONDS)
        example = self._registry[name].example
        if example is not None:
            scored_item(self._registry, example.item, max_response_chars=self._max_response_chars)

    def _score(self, item: Item) -> Scored:
        """A verdict that is sure to be readable: `parsed` may hold half a surrogate pair, or be too deep."""
        scored = scored_item(self._registry, item, max_response_chars=self._max_response_chars)
        try:
            encoded = scored.encoded
            if encoded.count(b"[") + encoded.count(b"{") > _SURELY_READABLE_DEPTH:
                Result.model_validate_json(encoded)
        except (PydanticSerializationError, ValueError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else str(error)
            detail = f"scorer of {item.task} returned an unusable verdict: {reason}"
            return Scored(without_reward(item, Outcome.VERIFIER_ERROR, detail), 0.0)
        return scored


def _read_frame(stream: BinaryIO) -> bytes:
    """Empty when the socket has closed."""
    head = stream.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return b""
    length = int.from_bytes(head, "big")
    payload = stream.read(length)
    return payload if len(payload) == length else b""


if __name__ == "__main__":
    sys.exit(main())
