"""Requests that the end of the server cuts short: 503, so that their clients ask again, whoever serves by then.

It does not know how long they were given; who serves cancels what is left when that time is over.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import overloaded, to_response


class CutShort:
    """Answers in place of a request that is cancelled. A client that hangs up ends its request in another way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if has_begun:  # too late for another answer
                raise
            # Nobody waits for the cancelled request but its client, so it may end as any other does.
            refusal = overloaded("the server is shutting down, and this was not done in time", Connection="close")
            await to_response(refusal)(scope, receive, send)
