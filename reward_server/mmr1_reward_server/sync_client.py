"""The client for callers that have no event loop of their own: `RewardClient` in a thread of its own.

Its retries, deadlines and errors are those of `client.py`; nothing of them is repeated here.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from .api import Item, Result, TaskInfo
from .client import RewardClient

T = TypeVar("T")


class SyncRewardClient:
    """Asks one reward server, from any number of threads. Use it as `with`, or call `close`.

    It does not survive a fork: make one in each process. Its arguments and what they raise are those of RewardClient.
    """

    def __init__(
        self,
        base_url: str,
        deadline_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        api_key: str | None = None,
        verify: ssl.SSLContext | str | bool = True,
    ) -> None:
        self._client = RewardClient(base_url, deadline_seconds, transport, api_key=api_key, verify=verify)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reward client", daemon=True)
        self._thread.start()

    def score(self, items: Sequence[Item]) -> list[Result]:
        """One result for each item, in order. Never raises for what the server or the network does."""
        return self._wait(self._client.score(items))

    def score_or_raise(self, items: Sequence[Item]) -> list[Result]:
        """As `score`, for callers to whom a server out of reach is not a failed verifier. Raises RewardServerError."""
        return self._wait(self._client.score_or_raise(items))

    def score_in_parts(
        self, items: Sequence[Item], *, items_per_request: int = 256, max_requests: int = 4
    ) -> list[Result]:
        """As `score`, for any number of items: in several requests, `max_requests` of them at the same time."""
        asking = self._client.score_in_parts(items, items_per_request=items_per_request, max_requests=max_requests)
        return self._wait(asking)

    def tasks(self) -> list[TaskInfo]:
        """What the server offers. Raises RewardServerError."""
        return self._wait(self._client.tasks())

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._wait(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        running = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()  # Ctrl-C while it waits
            raise
