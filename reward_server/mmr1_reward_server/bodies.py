"""Bounds on what requests may bring: bytes of one body, bytes of all bodies together, seconds for one to arrive.

A body counts until its answer has been taken.

ASGI middleware, so that it holds for every route however it reads. It does not look into a body; `read_body`, by which
every route reads, does so far as to count the JSON values in it.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError, overloaded
from .json_values import has_more_values

_DISCARDED_BODIES = 4  # times the limit, of a body that is over it
_MAX_VALUES = "mmr1_reward_server.max_json_values"  # in the scope of a request
_LARGE_ANSWER = 2**16  # more than uvicorn holds back for a client without pausing it


class BodyLimits:
    """Refuses with 413, 503 or 408 while a body arrives: a declared length can be missing or false."""

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, max_pending_bytes: int, max_json_values: int, body_seconds: float
    ) -> None:
        self._app = app
        self._max_body = max_body_bytes
        self._max_pending = max_pending_bytes
        self._max_values = max_json_values
        self._seconds = body_seconds
        self._num_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_MAX_VALUES] = self._max_values
        held = 0
        complete = False
        until: float | None = None

        async def limited() -> Message:
            nonlocal held, complete, until
            if complete:
                return await receive()
            # From the first question on: a body that was declared may never begin. Where there is none, as of a GET,
            # its end is there at once.
            if until is None:
                until = asyncio.get_running_loop().time() + self._seconds
            message = await self._within(until, receive)
            if message["type"] != "http.request":
                return message
            complete = not message.get("more_body", False)
            num_bytes = len(message.get("body", b""))
            held += num_bytes
            self._num_held += num_bytes
            if held > self._max_body or self._num_held > self._max_pending:
                # What is over the limit is not kept; the answer has to say which limit it was, though.
                own = held > self._max_body
                self._num_held -= held
                num_bytes, held = held, 0
                if not complete:
                    await self._discard(num_bytes, until, receive)
                raise self._too_large() if own else self._too_many()
            return message

        async def taken(message: Message) -> None:
            # Uvicorn lets a message wait until the one before it is on its way. Without a last, empty one, an answer
            # that nobody takes would be done with, and its bytes no longer counted.
            if message["type"] == "http.response.body" and len(message.get("body", b"")) > _LARGE_ANSWER:
                await send({**message, "more_body": True})
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, limited, taken)
        finally:
            self._num_held -= held

    async def _within(self, until: float, receive: Receive) -> Message:
        try:
            async with asyncio.timeout_at(until):
                return await receive()
        except TimeoutError:
            message = f"the body was not complete after {self._seconds:g} s"
            raise RequestError(408, "body_too_slow", message, {"Connection": "close"}) from None

    async def _discard(self, num_bytes: int, until: float, receive: Receive) -> None:
        """Reads on for a while: closing at once would reset the connection and lose the answer that says why."""
        more = True
        while more and num_bytes <= _DISCARDED_BODIES * self._max_body:
            message = await self._within(until, receive)
            num_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)

    def _too_large(self) -> RequestError:
        message = f"the body exceeds {self._max_body} bytes: send fewer items at a time"
        return RequestError(413, "body_too_large", message, {"Connection": "close"})

    def _too_many(self) -> RequestError:
        message = f"requests of {self._max_pending} bytes are pending, which is the limit; try again soon"
        return overloaded(message, Connection="close")


async def read_body(request: Request) -> bytes:
    """As `request.body()`, at a third of its cost for a body that comes in one piece.

    Raises ClientDisconnect, and RequestError (413) for more JSON values than `BodyLimits` allows.
    """
    parts: list[bytes] = []
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    limit = request.scope.get(_MAX_VALUES)
    if limit is not None and has_more_values(body, limit):
        problem = f"the body holds more than {limit} JSON values: send fewer items at a time"
        raise RequestError(413, "too_many_values", problem)
    return body
