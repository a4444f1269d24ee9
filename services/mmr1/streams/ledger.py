"""The accounts of a run: fed = trained + dropped + dead + pending, at every instant.

`pending` is counted from the streams' lengths and never derived from the other terms, so the equation can fail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from mmr1.errors import ConfigurationError
from mmr1.streams.scripts import Scripts


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counts of groups (prompts whose completions may not exist yet included)."""

    fed: int = 0
    trained: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)
    num_prompts: int = 0
    num_groups: int = 0
    num_applied: int = 0
    next_position: int = 0
    incarnation: int = 0
    version_number: int = 0

    @property
    def pending(self) -> int:
        """Fed and not ready, ready, or applied and not yet durable."""
        return self.num_prompts + self.num_groups

    @property
    def unapplied(self) -> int:
        """What back-pressure counts."""
        return self.pending - self.num_applied

    @property
    def balanced(self) -> bool:
        return self.fed == self.trained + sum(self.dropped.values()) + sum(self.dead.values()) + self.pending

    def require_balance(self, run: str) -> None:
        """Nothing is trained, kept or called done on accounts that do not add up.

        Raises:
            ConfigurationError: a group was lost, or counted twice.
        """
        if self.balanced:
            return
        dropped, dead = sum(self.dropped.values()), sum(self.dead.values())
        raise ConfigurationError(
            f"the ledger does not balance: {self.fed} fed, but {self.trained} trained + {dropped} dropped + {dead} "
            f"dead + {self.pending} pending; something else removes entries from Redis (another program, or a "
            f"maxmemory-policy other than noeviction): see to that, delete the keys mmr1:{{{run}}}:* (of a Redis that "
            "`mmr1 up` starts, the folder redis in the run's), and give the same command again: it goes on from the "
            "newest checkpoint"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "fed": self.fed,
            "trained": self.trained,
            "dropped": self.dropped,
            "dead": self.dead,
            "pending": self.pending,
            "balanced": self.balanced,
        }


def read_ledger(redis: Redis, run: str) -> Ledger:
    """The accounts of `run`, without being its learner."""
    return ledger_from_accounts(Scripts(redis, run).call("accounts"))


def ledger_from_accounts(reply: list[Any]) -> Ledger:
    num_prompts, num_groups, num_applied, counters, incarnation, number = reply
    counts = _pairs(counters)
    return Ledger(
        fed=counts.get("fed", 0),
        trained=counts.get("trained", 0),
        dropped=_reasons(counts, "dropped:"),
        dead=_reasons(counts, "dead:"),
        num_prompts=num_prompts,
        num_groups=num_groups,
        num_applied=num_applied,
        next_position=counts.get("next_position", 0),
        incarnation=int(incarnation or 0),
        version_number=int(number or 0),
    )


def _pairs(flat: list[bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _reasons(counts: dict[str, int], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}
