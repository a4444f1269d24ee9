"""A TCP relay on loopback: what is behind it can be swapped, and an answer be lost after its request has arrived."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from tests.conftest import free_port

SECONDS = 10.0


class Relay:
    """Passes what arrives at `port` on to `target`, a port. A context manager, with a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port, self.target = free_port(), target
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.num_lost = 0
        self._lose = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        starting = asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        self._in_loop(self._server.close)
        self._in_loop(lambda: [task.cancel() for task in self._tasks])
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)

    def lose_an_answer(self) -> None:
        """The next answer does not arrive; its connection breaks instead."""
        self._lose = True

    def lead_to(self, target: int, cut: bool = True) -> None:
        """New connections go there; those that are open break, or stay where they are."""
        self.target = target
        if cut:
            self.cut()

    def cut(self) -> None:
        """Every connection breaks."""
        self._in_loop(lambda: [writer.close() for writer in self._writers])

    def _in_loop(self, action: Callable[[], Any]) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(SECONDS)

    def _accept(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._relay(near, to_near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        try:
            far, to_far = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            to_near.close()
            return
        self._writers |= {to_near, to_far}
        await asyncio.gather(self._pass(near, to_far), self._pass(far, to_near, answers=True))
        self._writers -= {to_near, to_far}

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(2**16):
                if answers and self._lose:
                    self._lose = False
                    self.num_lost += 1
                    break
                sink.write(data)
                await sink.drain()
        sink.close()
