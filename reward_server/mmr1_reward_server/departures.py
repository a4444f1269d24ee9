"""Work for a client that may hang up: it is given up when the client does, so that nobody else waits behind it.

It knows no route and no task, and costs next to nothing for work that is done soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")

_FIRST_LOOK_SECONDS = 0.05  # most work is done by then, and nobody has looked
_LOOK_SECONDS = 0.25


async def unless_left(left: Callable[[], Awaitable[None]], work: Awaitable[T]) -> T:
    """What `work` returns. `left` returns when the client has left; then `work` is cancelled.

    Raises ClientDisconnect, and what `work` raises.
    """
    caller = asyncio.current_task()
    assert caller is not None
    watch: asyncio.Task[None] | None = None
    has_left = False

    async def look() -> None:
        nonlocal has_left
        await left()
        has_left = True
        caller.cancel()

    def begin() -> None:
        nonlocal watch
        watch = asyncio.ensure_future(look())

    timer = asyncio.get_running_loop().call_later(_FIRST_LOOK_SECONDS, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and caller.uncancel() == 0:  # else someone else wants the caller to end, too
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        if watch is not None:
            watch.cancel()


async def hung_up(receive: Receive) -> None:
    """Returns when the connection of a request has closed. Its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def found_gone(gone: Callable[[], Awaitable[bool]]) -> None:
    """Returns when `gone` says so, which it is asked now and then."""
    while True:
        if await gone():
            return
        await asyncio.sleep(_LOOK_SECONDS)
