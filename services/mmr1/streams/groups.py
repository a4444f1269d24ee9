"""The learner's side of the queue: feed prompts, read groups, acknowledge what a durable checkpoint contains.

Every call carries the learner's incarnation and raises StaleWriterError once a newer learner exists, RunForgottenError
when Redis has been emptied. With a Patience, a Redis that is away, full or read-only is waited for. This file knows
nothing of datasets, batches or checkpoints; `mmr1_learner.source` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from mmr1.errors import ConfigurationError
from mmr1.records import SCHEMA_VERSION, Group, PolicyVersion, Prompt, PromptId
from mmr1.streams.accounts import Accounts, accounts_from
from mmr1.streams.ledger import Ledger, ledger_from_accounts
from mmr1.streams.patience import Patience, WriterCalls
from mmr1.streams.scripts import Scripts
from mmr1.tracing import begin_trace, now, record_span
from mmr1.wire import decode_group, encode_prompt

_FED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Member:
    """A rollout server with a valid lease. `version` is None until it has committed one."""

    server_id: str
    address: str
    state: str
    version: PolicyVersion | None


class RunQueue:
    """The queue of one run, as its one current learner."""

    def __init__(self, redis: Redis, run: str, patience: Patience | None = None) -> None:
        self._redis = redis
        self._run = run
        self._scripts = Scripts(redis, run)
        self._calls = WriterCalls(redis, self._scripts, patience, self._replay)
        self._replayed: str | None = "0-0"  # what an earlier life had claimed is read before anything new
        self._held: set[PromptId] = set()  # read, and neither acknowledged nor dropped: not to be read twice

    @property
    def incarnation(self) -> int:
        return self._calls.incarnation

    def _replay(self) -> None:
        self._replayed = "0-0"

    def become_writer(self, run_id: str = "", last_incarnation: int = 0) -> int:
        """Take the next incarnation; every older learner is refused from here on.

        Args:
            run_id: of the run's folder. Redis remembers it with the run's name.
            last_incarnation: the last one that the folder knows of, in case Redis has forgotten it.

        Raises:
            ConfigurationError: Redis holds a run of this name that belongs to another folder.
        """
        self._held.clear()
        self._replay()
        try:
            return self._calls.begin(lambda: self._take_incarnation(run_id, last_incarnation))
        except ResponseError as error:
            if str(error).startswith("FOREIGN"):
                raise ConfigurationError(
                    f"Redis holds a run named {self._run!r} of another run folder; give this one another --run name"
                ) from None
            raise

    def _take_incarnation(self, run_id: str, last_incarnation: int) -> int:
        for stream, group in (("prompts", "rollout"), ("groups", "learner")):
            try:
                self._redis.xgroup_create(self._scripts.key(stream), group, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
        return int(self._scripts.call("become_writer", run_id, last_incarnation, SCHEMA_VERSION))

    def feed(self, prompt: Prompt, *, force: bool = False) -> bool:
        """Queue a prompt. False: this id has been fed before.

        `force` feeds a place again that Redis has forgotten; one that is trained, dropped or dead it knows.
        """
        began = now()
        fed = bool(self._write("feed", int(force), *_as_fed(prompt)))
        if fed:
            begin_trace(prompt.id, "feed", began)
        return fed

    def feed_again(self, prompts: Iterable[Prompt]) -> int:
        """Queue those of these places that Redis has forgotten, many in one exchange. Returns how many those are."""
        remaining, count = iter(prompts), 0
        while chunk := list(islice(remaining, _FED_AT_ONCE)):
            count += int(self._write("feed", 1, *(argument for prompt in chunk for argument in _as_fed(prompt))))
        return count

    def read(self, count: int) -> list[Group]:
        """Up to `count` scored groups, without waiting. After a restart, those of the earlier life come first.

        Raises:
            SchemaVersionError: one was written by a build that is too old or too new. All stay pending, for a learner
                that understands them.
        """
        began = now()
        groups: list[Group] = []
        while self._replayed is not None and len(groups) < count:
            entries = self._write("read_groups", count - len(groups), self._replayed)
            self._replayed = entries[-1][0].decode() if entries else None
            groups += self._new(entries)
        if len(groups) < count:
            groups += self._new(self._write("read_groups", count - len(groups), ">"))
        for group in groups:
            record_span("read", group.prompt.id, began, policy_version=str(group.oldest_version))
        return groups

    def _new(self, entries: Sequence[tuple[bytes, bytes, bytes]]) -> list[Group]:
        """Those that this learner does not hold already: a Redis that has forgotten their delivery gives them again."""
        groups = [group for _, _, payload in entries if (group := decode_group(payload)).prompt.id not in self._held]
        self._held.update(group.prompt.id for group in groups)
        return groups

    def mark_applied(self, ids: Iterable[PromptId]) -> None:
        """These groups are in an optimizer step: they no longer hold the feeder back."""
        self._write("apply", *map(str, ids))

    def ensure_current(self) -> None:
        """Raise StaleWriterError when a newer learner exists."""
        self._write("apply")

    def acknowledge(self, ids: Sequence[PromptId]) -> int:
        """A durable checkpoint contains these groups. Returns how many were still pending."""
        began = now()
        count = int(self._write("finish", *map(str, ids))) if ids else 0
        self._held.difference_update(ids)
        for id_ in ids:
            record_span("acknowledge", id_, began)
        return count

    def prune(self) -> None:
        """A checkpoint is durable: forget, one by one, what is settled before the oldest pending place."""
        self._write("prune")

    def drop(self, id_: PromptId, reason: str, next_prompt: Prompt | None = None) -> bool:
        """Drop a group for `reason` and, in the same step, feed its place's next attempt. False: not pending."""
        following = (str(next_prompt.id), encode_prompt(next_prompt)) if next_prompt else ("", b"")
        began = now()
        dropped = bool(self._write("drop", str(id_), reason, *following))
        self._held.discard(id_)
        record_span("drop", id_, began, reason=reason)
        if next_prompt is not None and dropped:
            begin_trace(next_prompt.id, "feed", began)
        return dropped

    def commit_version(self, version: PolicyVersion) -> None:
        """Every serving rollout server holds this version now."""
        if version.incarnation != self.incarnation:
            raise ValueError(f"version {version} is not of incarnation {self.incarnation}")
        self._write("commit_version", version.number)

    def members(self) -> list[Member]:
        """The rollout servers whose lease is valid, in order of their id."""
        members = []
        for encoded in self._calls.insist(lambda: self._scripts.call("members")):
            lease = json.loads(encoded)
            version = PolicyVersion(int(lease["incarnation"]), int(lease["number"]))
            members.append(
                Member(lease["server_id"], lease["address"], lease["state"], version if version.incarnation else None)
            )
        return sorted(members, key=lambda member: member.server_id)

    def ledger(self) -> Ledger:
        return ledger_from_accounts(self._calls.insist(lambda: self._scripts.call("accounts")))

    def accounts(self) -> Accounts:
        return accounts_from(self._calls.insist(lambda: self._scripts.call("inspect")))

    def pending_ids(self) -> set[PromptId]:
        """Every id that is fed, ready or applied."""
        return self.snapshot()[1]

    def snapshot(self) -> tuple[Ledger, set[PromptId]]:
        """The accounts and every pending id, at one instant."""
        reply = self._calls.insist(lambda: self._scripts.call("snapshot"))
        pending = set()
        for field in reply[6]:
            position, _, attempt = field.decode().partition("/")
            pending.add(PromptId(self._run, int(position), int(attempt)))
        return ledger_from_accounts(reply[:6]), pending

    def restore(self, ledger: Ledger) -> bool:
        """Put counters back into a Redis that has forgotten the run. False: it has not."""
        fields: list[Any] = ["fed", ledger.fed, "trained", ledger.trained, "next_position", ledger.next_position]
        for kind, counts in (("dropped", ledger.dropped), ("dead", ledger.dead)):
            for reason, count in counts.items():
                fields += [f"{kind}:{reason}", count]
        return bool(self._write("restore", *fields))

    def _write(self, name: str, *arguments: str | bytes | int) -> Any:
        return self._calls.write(name, *arguments)


def _as_fed(prompt: Prompt) -> tuple[str, int, int, bytes]:
    return str(prompt.id), prompt.id.position, prompt.id.attempt, encode_prompt(prompt)
