"""Key names of a run, and the Lua scripts that move entries and counters together.

Every transition of a group's life is one script, so no crash can leave it half done. The scripts stand in `lua/`, one
file each; `prelude.lua` is put before each of them. This file knows nothing of prompts or groups.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import ResponseError

from mmr1.errors import StaleWriterError

_KEYS = (
    *("prompts", "groups", "ledger", "items", "applied", "leases"),
    *("writer", "graveyard", "versions", "errors", "pulse", "settled"),
)


class RunForgottenError(Exception):
    """Redis no longer knows the run. Not a takeover: the learner starts again and reconciles Redis."""


@cache
def _source(name: str) -> str:
    folder = resources.files("mmr1.streams") / "lua"
    return (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()


class Scripts:
    """The scripts of one run on one client, synchronous or asyncio: `call` returns what that client returns."""

    def __init__(self, redis: Any, run: str) -> None:
        self._redis = redis
        self._keys = [f"mmr1:{{{run}}}:{name}".encode() for name in _KEYS]  # bytes: not encoded again for each call
        self._registered: dict[str, Any] = {}

    def key(self, name: str) -> str:
        return self._keys[_KEYS.index(name)].decode()

    def call(self, name: str, *arguments: str | bytes | int | float) -> Any:
        """Run one script. With an asyncio client the result is awaited by the caller."""
        script = self._registered.get(name)
        if script is None:
            script = self._registered[name] = self._redis.register_script(_source(name))
        return script(keys=self._keys, args=list(arguments))


def refusal(error: ResponseError) -> StaleWriterError | RunForgottenError | None:
    """What a script's refusal means to the learner that called it; None: it was no refusal."""
    message = str(error)
    if message.startswith("FORGOTTEN"):
        return RunForgottenError("Redis was emptied during the run; a restart fills it from the newest checkpoint")
    return StaleWriterError(message.removeprefix("STALE ")) if message.startswith("STALE") else None
