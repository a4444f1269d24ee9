"""A run's accounts as people look at them: the ledger, groups by policy version, how long things wait, and the dead.

Only looks. Decisions rest on the ledger alone, which costs the same to read however long the run is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from redis import Redis

from mmr1.records import PolicyVersion
from mmr1.streams.ledger import Ledger, ledger_from_accounts
from mmr1.streams.scripts import Scripts

STATES = ("ready", "trained", "dropped")
_RUN_KEY = "mmr1:{*}:*"


@dataclass(frozen=True, slots=True)
class Accounts:
    """One instant of a run.

    `by_version` counts groups by the oldest version that sampled them, applied ones as ready; those that a Redis has
    forgotten are in the ledger alone. The two ages are seconds since the oldest entry came to where it is: a prompt
    that was fed or given back, a group that was published. None: there is none.
    """

    ledger: Ledger
    known: bool
    by_version: dict[PolicyVersion, dict[str, int]]
    oldest_prompt_seconds: float | None
    oldest_group_seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        ledger = self.ledger
        return {
            **ledger.as_dict(),
            "policy_version": str(PolicyVersion(ledger.incarnation, ledger.version_number)),
            "pending_by_state": {
                "prompts": ledger.num_prompts,
                "ready": ledger.num_groups - ledger.num_applied,
                "applied": ledger.num_applied,
            },
            "by_version": {str(version): counts for version, counts in self.by_version.items()},
            "oldest_prompt_seconds": self.oldest_prompt_seconds,
            "oldest_group_seconds": self.oldest_group_seconds,
        }


@dataclass(frozen=True, slots=True)
class DeadPrompt:
    """A prompt that nobody will sample any more. `time` is in seconds since 1970, by Redis' clock."""

    id: str
    reason: str
    detail: str
    time: float


def read_accounts(redis: Redis, run: str) -> Accounts:
    """The accounts of `run`, without being its learner. `known` is False when this Redis has nothing of it."""
    return accounts_from(Scripts(redis, run).call("inspect"))


def read_dead(redis: Redis, run: str, *, page: int = 100) -> Iterator[DeadPrompt]:
    """The dead prompts of `run`, oldest first."""
    stream, cursor = Scripts(redis, run).key("graveyard"), "-"
    while entries := _range(redis, stream, cursor, page):
        for entry, fields in entries:
            id_, reason, detail = (fields[name].decode() for name in (b"id", b"reason", b"detail"))
            yield DeadPrompt(id_, reason, detail, _seconds(entry))
        cursor = f"({entries[-1][0].decode()}"


def run_names(redis: Redis) -> list[str]:
    """The runs that this Redis holds something of."""
    keys: Iterable[bytes] = redis.scan_iter(match=_RUN_KEY, count=1000)
    return sorted({key.decode().partition("{")[2].partition("}")[0] for key in keys})


def accounts_from(reply: list[Any]) -> Accounts:
    """Of what `inspect.lua` answers."""
    num_keys, counts, oldest_prompt, oldest_group, (seconds, micros) = reply[6:]
    now = int(seconds) + int(micros) / 1e6
    by_version: dict[PolicyVersion, dict[str, int]] = {}
    for name, count in zip(counts[::2], counts[1::2], strict=True):
        state, _, version = name.decode().partition(":")
        by_version.setdefault(_version(version), dict.fromkeys(STATES, 0))[state] = int(count)
    return Accounts(
        ledger=ledger_from_accounts(reply[:6]),
        known=num_keys > 0,
        by_version=dict(sorted(by_version.items())),
        oldest_prompt_seconds=max(0.0, now - _seconds(oldest_prompt)) if oldest_prompt else None,
        oldest_group_seconds=max(0.0, now - _seconds(oldest_group)) if oldest_group else None,
    )


def _version(text: str) -> PolicyVersion:
    incarnation, _, number = text.partition(".")
    return PolicyVersion(int(incarnation), int(number))


def _seconds(entry: bytes) -> float:
    """Of a stream entry's id."""
    return int(entry.partition(b"-")[0]) / 1e3


def _range(redis: Redis, stream: str, begin: str, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found: Any = redis.xrange(stream, min=begin, count=count)
    return list(found)
