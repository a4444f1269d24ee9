"""API keys: where they come from, and the middleware that asks for one. Without any key, every request is let in.

It knows no users and no rights: a key opens everything. Keys are never in the command line, which others can list.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import RequestError, to_response
from .settings import SettingsError

logger = logging.getLogger(__name__)

KEY_VARIABLE = "MMR1_REWARD_API_KEY"
# Probes have no token (the first two are those of V-Triune and PipelineRL), and numbers of items are no secret.
OPEN_PATHS = frozenset({"/", "/health", "/healthz", "/readyz", "/metrics"})

# As the OpenAPI document names the ways in which a key is sent; each is enough.
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "basic": {"type": "http", "scheme": "basic", "description": "the key is the password; any user"},
}

_MIN_KEY_CHARS = 8
_COMMENT = re.compile(r"(?:^|\s)#")
_MAX_DISCARDED_BYTES = 2**20
_DISCARD_SECONDS = 2.0
_BEARER_HEADERS = (b"authorization", b"xrl-authorization")  # the second is ROLL's
_KEY_HEADER = b"x-api-key"


def load_keys(file: str | None) -> frozenset[str]:
    """The keys of the file, one a line, and that of the environment. Raises SettingsError.

    `#` begins a comment at a line's beginning or after a space; within a key it is refused, lest it shorten one.
    """
    keys: set[str] = set()
    if file is not None:
        path = Path(file)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise SettingsError(f"--api-key-file {file} cannot be read: {reason}") from None
        for number, line in enumerate(lines, 1):
            key = _COMMENT.split(line, maxsplit=1)[0].strip()
            source = f"--api-key-file {file}, line {number}"
            if "#" in key:
                raise SettingsError(f"{source}: there is a # within the key; a comment begins after a space")
            if key:
                keys.add(_checked(key, source))
        if not keys:
            raise SettingsError(f"--api-key-file {file} holds no key: write one a line, or leave the option out")
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            # Only a warning: a mounted secret is often readable by all of a container that has one user.
            logger.warning("others can read the API keys", extra={"fields": {"file": file, "remedy": "chmod 600"}})
    if KEY_VARIABLE in os.environ:  # an empty one too: it is a secret that did not arrive, not a wish for none
        keys.add(_checked(os.environ[KEY_VARIABLE].strip(), KEY_VARIABLE))
    return frozenset(keys)


def _checked(key: str, source: str) -> str:
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise SettingsError(f"{source}: a key is made of ASCII characters without spaces")
    if len(key) < _MIN_KEY_CHARS:
        raise SettingsError(
            f"{source}: a key has {_MIN_KEY_CHARS} characters or more; `openssl rand -hex 32` makes one"
        )
    return key


class RequireKey:
    """Lets a request through that brings a key, as `Authorization: Bearer KEY`, `X-API-Key: KEY` or Basic password.

    Basic is there for clients that can be given nothing but a URL: `http://any:KEY@host:8000/get_reward`.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._admits(scope["headers"]):
            message = "this server asks for an API key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
            await _discard_body(receive)
            await to_response(RequestError(401, "unauthorized", message, headers))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        admitted = False
        for name, value in headers:
            if name == _KEY_HEADER:
                admitted |= self._is_key(value.strip())
            elif name in _BEARER_HEADERS:
                scheme, _, rest = value.partition(b" ")
                if scheme.lower() == b"bearer":
                    admitted |= self._is_key(rest.strip())
                elif scheme.lower() == b"basic":
                    admitted |= self._is_key(_password(rest.strip()))
        return admitted

    def _is_key(self, offered: bytes) -> bool:
        """Takes as long for any offer: each key is compared, and each comparison in constant time."""
        found = False
        for key in self._keys:
            found |= hmac.compare_digest(key, offered)
        return found


async def _discard_body(receive: Receive) -> None:
    """For a while: closing in the middle of a body would reset the connection and lose the answer that says why."""
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while num_bytes < _MAX_DISCARDED_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _password(encoded: bytes) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
