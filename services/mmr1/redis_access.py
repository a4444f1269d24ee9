"""How a run's processes get into Redis: the URL, the password and TLS beside it, and what is wrong when it fails.

A password never stands where a URL is shown. Knows nothing of what is stored there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import redis.asyncio
from pydantic import ValidationError
from redis import Redis
from redis.connection import parse_url
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from mmr1.config import RunConfig
from mmr1.config.access import AccessOptions
from mmr1.credentials import PASSWORD_VARIABLE, redis_password, shown_redis_url
from mmr1.errors import ConfigurationError
from mmr1.tls import PROBE_SECONDS, TlsFiles, files, speaks_tls, tls_fault

BESIDE_URL = ("redis_password_file", "redis_tls_ca", "redis_tls_cert", "redis_tls_key")
PORT = 6379  # where a URL names none
# What Redis 6 and 7 say of a command within a script that the user's rules forbid: no exception class of its own.
_FORBIDDEN_IN_SCRIPT = ("NOPERM", "ACL failure in script", "can't run this command", "can't access")


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """Where a Redis is and what to show it. A URL alone is enough for one that is open or has its password in it."""

    url: str = field(repr=False)
    password: str | None = field(default=None, repr=False)
    tls: TlsFiles = field(default_factory=TlsFiles)

    @classmethod
    def from_config(cls, config: RunConfig, environment: Mapping[str, str] | None = None) -> Self:
        """Read what is beside the URL.

        Raises:
            ConfigurationError: the URL is none, has a password although another is given, or a file is not what its
                option asks for.
        """
        if config.redis_url is None:
            return cls(config.resolved_redis_url)  # of `mmr1 up`: on this machine's loopback alone, without a password
        return cls._from_options(config.redis_url, config, environment)

    @classmethod
    def _from_options(cls, url: str, config: AccessOptions, environment: Mapping[str, str] | None) -> Self:
        password = redis_password(config.redis_password_file, environment)
        tls = files(
            ca=("redis_tls_ca", config.redis_tls_ca),
            certificate=("redis_tls_cert", config.redis_tls_cert),
            key=("redis_tls_key", config.redis_tls_key),
        )
        if url.startswith("rediss://"):
            tls.context()  # all of it is what it should be
        access = cls(url, password, tls)
        if password is not None and "password" in access.parts():
            raise ConfigurationError(
                f"redis_url has a password, and redis_password_file or {PASSWORD_VARIABLE} gives another; leave one out"
            )
        return access

    @classmethod
    def from_environment(cls, url: str, environment: Mapping[str, str] | None = None) -> Self:
        """For a command without a configuration: the options beside `url` as MMR1_<OPTION>. Raises as `from_config`."""
        variables = os.environ if environment is None else environment
        given = {name: variables.get(f"MMR1_{name.upper()}") or None for name in BESIDE_URL}
        try:
            options = AccessOptions.model_validate({"redis_url": url, **given})
        except ValidationError as error:
            raise ConfigurationError(f"environment: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        return cls._from_options(url, options, environment)

    @property
    def shown(self) -> str:
        """The URL for people: without user, password and parameters."""
        return shown_redis_url(self.url)

    def client(self, **options: Any) -> Redis:
        """A client; nothing is sent yet. Raises ConfigurationError: the URL is none."""
        self.parts()
        return Redis.from_url(self.url, **self._beside_url(), **options)

    def asyncio_client(self, **options: Any) -> redis.asyncio.Redis:
        """As `client`."""
        self.parts()
        return redis.asyncio.Redis.from_url(self.url, **self._beside_url(), **options)

    def parts(self) -> dict[str, Any]:
        """The URL's parts by redis-py's names. Raises ConfigurationError, and never quotes the URL."""
        try:
            return dict(parse_url(self.url))  # type: ignore[no-untyped-call]
        except ValueError:
            raise ConfigurationError(
                "redis_url is not the URL of a Redis: redis://HOST:PORT/0, rediss:// for TLS, redis://USER@HOST:PORT/0 "
                "with a user; special characters within it are written as %XX"
            ) from None

    def refusal(self, error: RedisError) -> ConfigurationError | None:
        """What the user must change when a command failed with `error`; None: nothing that access could mend.

        Where there is no connection it tries a handshake, and so may take some seconds.
        """
        said = str(error).splitlines()[0] if str(error) else ""
        if isinstance(error, NoPermissionError) or (
            isinstance(error, ResponseError) and any(words in said for words in _FORBIDDEN_IN_SCRIPT)
        ):
            return ConfigurationError(f"redis_url {self.shown}: {said}; give the user the rules of docs/security.md")
        if isinstance(error, AuthenticationError) or said.startswith("NOAUTH"):
            return ConfigurationError(
                f"redis_url {self.shown}: {said}; the user stands in redis_url, the password in redis_password_file or "
                f"{PASSWORD_VARIABLE}"
            )
        return self._tls_refusal() if isinstance(error, ConnectionError | TimeoutError) else None

    def _tls_refusal(self) -> ConfigurationError | None:
        parts = self.parts()
        host, port = parts.get("host", "localhost"), parts.get("port", PORT)
        if self.url.startswith("rediss://"):
            # A Redis without TLS waits for the rest of what looks to it like half a line.
            plain = "path" not in parts and _answers_without_tls(host, port)
            fault = "it speaks no TLS" if plain else tls_fault(host, port, self.tls.context())
            remedy = "see redis_tls_ca, redis_tls_cert and redis_tls_key, or write redis:// for one without TLS"
            return ConfigurationError(f"redis_url {self.shown}: {fault}; {remedy}") if fault else None
        if "path" in parts or not speaks_tls(host, port):
            return None
        return ConfigurationError(f"redis_url {self.shown}: it speaks TLS; write rediss:// instead of redis://")

    def _beside_url(self) -> dict[str, Any]:
        """What redis-py takes as arguments; the URL's own parts win over them."""
        beside: dict[str, Any] = {}
        if self.password is not None:
            beside["password"] = self.password
        named = {"ssl_ca_certs": self.tls.ca, "ssl_certfile": self.tls.certificate, "ssl_keyfile": self.tls.key}
        return beside | {name: str(file[1]) for name, file in named.items() if file is not None}


def _answers_without_tls(host: str, port: int) -> bool:
    """Whether a Redis there answers a PING, be it with a refusal."""
    try:
        with socket.create_connection((host, port), PROBE_SECONDS) as plain:
            plain.settimeout(PROBE_SECONDS)
            plain.sendall(b"PING\r\n")
            return plain.recv(1) in (b"+", b"-")
    except OSError:
        return False


def access_to(given: RedisAccess | str) -> RedisAccess:
    """A URL alone stands for a Redis with nothing beside it."""
    return RedisAccess(given) if isinstance(given, str) else given
