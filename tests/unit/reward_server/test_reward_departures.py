"""Work that is given up when its client hangs up, and only then."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from mmr1_reward_server.departures import hung_up, unless_left


class Connection:
    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.num_looks = 0

    async def receive(self) -> Message:
        self.num_looks += 1
        await self.closed.wait()
        return {"type": "http.disconnect"}

    async def left(self) -> None:
        await hung_up(self.receive)


async def test_quick_work_is_done_without_a_look() -> None:
    connection = Connection()

    async def quick() -> int:
        await asyncio.sleep(0)
        return 3

    assert await unless_left(connection.left, quick()) == 3
    await asyncio.sleep(0.1)
    assert connection.num_looks == 0


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    connection = Connection()
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("work")

    asyncio.get_running_loop().call_later(0.1, connection.closed.set)
    with pytest.raises(ClientDisconnect):
        await unless_left(connection.left, endless())
    assert ended == ["work"]
    await asyncio.sleep(0)  # the caller itself is not cancelled


async def test_what_else_ends_the_work_is_passed_on() -> None:
    connection = Connection()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await unless_left(connection.left, asyncio.sleep(3600))
    caller = asyncio.ensure_future(unless_left(connection.left, asyncio.sleep(3600)))
    await asyncio.sleep(0.1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert connection.num_looks == 2

    async def fails() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await unless_left(connection.left, fails())
