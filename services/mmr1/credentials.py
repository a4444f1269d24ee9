"""Secrets of a run: read from files or the environment when they are needed, and from nowhere else.

They never travel in arguments, which others can list, nor in the configuration that a run's folder keeps. Knows nothing
of what they open.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

import structlog

from mmr1.errors import ConfigurationError

TOKEN_VARIABLE = "MMR1_ROLLOUT_TOKEN"
PASSWORD_VARIABLE = "MMR1_REDIS_PASSWORD"
REWARD_KEY_VARIABLE = "MMR1_REWARD_API_KEY"  # the reward server reads the same one
# What lets its holder into the run's services. A program of the run that needs none of them does not inherit them; the
# reward server is given its own key alone.
SECRET_VARIABLES = frozenset({TOKEN_VARIABLE, PASSWORD_VARIABLE, "MMR1_REDIS_URL"})

_MIN_TOKEN_CHARS = 16
_CONTAINER_FIRST = ("abfs://", "abfss://", "az://", "wasb://", "wasbs://")

log = structlog.get_logger()


def rollout_tokens(file: Path | None, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The tokens of the rollout servers; empty: they let everybody in.

    Raises:
        ConfigurationError: a token is none, the file cannot be read or holds none, or both sources are given.
    """
    found = _read("rollout_token_file", file, TOKEN_VARIABLE, environment)
    for source, token in found:
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise ConfigurationError(f"{source}: a token is made of ASCII characters without spaces")
        if len(token) < _MIN_TOKEN_CHARS:
            raise ConfigurationError(
                f"{source}: a token has {_MIN_TOKEN_CHARS} characters or more; `openssl rand -hex 32` makes one"
            )
    return tuple(token for _, token in found)


def redis_password(file: Path | None, environment: Mapping[str, str] | None = None) -> str | None:
    """The password of the URL's Redis user; None: neither source is given.

    Raises:
        ConfigurationError: the file cannot be read or has not one line, or both sources are given.
    """
    found = _read("redis_password_file", file, PASSWORD_VARIABLE, environment)
    if len(found) > 1:
        raise ConfigurationError(f"redis_password_file {file} has {len(found)} lines; a password is one line")
    return found[0][1] if found else None


def reward_key(file: Path | None, environment: Mapping[str, str] | None = None) -> str | None:
    """The key to show to the reward server; None: neither source is given.

    Raises:
        ConfigurationError: the file cannot be read or holds none, or both sources are given.
    """
    found = _read("reward_key_file", file, REWARD_KEY_VARIABLE, environment)
    return found[0][1] if found else None


def holds_password(redis_url: str) -> bool:
    """Whether a Redis URL has a password in it. In doubt it has."""
    return re.search(r"://[^/?#]*:[^@]*@|password=", redis_url) is not None


def check_reward_url(reward_url: str) -> None:
    """An @ in any place: unescaped characters in a password move the borders between the URL's parts.

    Raises:
        ValueError: it may hold a user or a password; one line with the remedy, and nothing of the URL.
    """
    if "@" in reward_url:
        raise ValueError(
            f"it holds a user or a password, which would stand in files, logs and trackers; set {REWARD_KEY_VARIABLE} "
            "to one of the reward server's keys and leave them out of the URL"
        )


def shown_redis_url(redis_url: str) -> str:
    """A Redis URL for people: without user, password and parameters.

    Unescaped characters in a password move the borders between the URL's parts, so of an odd URL nothing is shown.
    """
    plain = re.fullmatch(r"(rediss?://)(?:[^/?#]*@)?([^:@/?#]+(?::\d+)?(?:/\d*)?)|(unix://[^@?#]*)", redis_url)
    return "".join(part or "" for part in plain.groups()) if plain else "(a URL that is not shown)"


def holds_login(url: str) -> bool:
    """Whether a URL of files holds a user or a password. In doubt it does; Azure's have their container there."""
    return holds_password(url) or (not url.startswith(_CONTAINER_FIRST) and re.search(r"://[^/?#]*@", url) is not None)


def without_secrets(text: str) -> str:
    """What somebody else says, a server or a dataset: of its URLs no user, password, query and fragment.

    Of a URL with an @ nothing before that is shown: unescaped characters in a password move the borders between parts.
    """
    without_login = re.sub(r"([\w+.-]{2}:/{1,2})\S*@", r"\1...@", text)
    return re.sub(r"""([\w+.-]{2}:/{1,2}[^\s'"<>?#]*)[?#][^\s'"<>]*""", r"\1?...", without_login)


def make_token(path: Path) -> None:
    """Write a new random token, for its owner's eyes. Whatever was at `path` is replaced, a link itself included."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask says
        file.write(secrets.token_hex(32) + "\n")


def _read(
    option: str, file: Path | None, variable: str, environment: Mapping[str, str] | None
) -> list[tuple[str, str]]:
    """(where it stands, the secret) of each."""
    given = (os.environ if environment is None else environment).get(variable)
    if file is None:
        if given is None:
            return []
        if not given.strip():  # it is a secret that did not arrive, not a wish for none
            raise ConfigurationError(f"{variable} is empty; set it to the secret, or unset it")
        return [(variable, given.strip())]
    if given is not None:
        raise ConfigurationError(f"{option} and {variable} are both given; leave one of them out")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"{option} {file} cannot be read: {reason}; give a readable file") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        # Only a warning: a mounted secret is often readable by all of a container that has one user.
        log.warning("others can read a secret", file=str(file), remedy="chmod 600")
    found = [(f"{option} {file}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigurationError(f"{option} {file} holds nothing; write the secret into it, or leave the option out")
    return found
