"""The rollout server's side of the queue: take a prompt, publish its group, or give it back.

A server holds what it took until one of three scripts takes it away; each does nothing if another server has claimed
the entry meanwhile. This file knows nothing of engines or rewards, and decides nothing about versions: Redis does.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mmr1.records import SCHEMA_VERSION, Group, PolicyVersion, Prompt
from mmr1.streams.scripts import Scripts
from mmr1.tracing import now, record_span, span
from mmr1.wire import SchemaVersionError, decode_prompt, encode_group, schema_refusal


@dataclass(frozen=True, slots=True)
class Delivery:
    """A prompt this server holds. `num_deliveries` counts holders that died, and this one."""

    entry_id: str
    prompt: Prompt
    num_deliveries: int


class PromptConsumer:
    """One rollout server, as the queue sees it."""

    def __init__(
        self, redis: Redis, run: str, server_id: str, *, claim_idle_seconds: float, max_deliveries: int
    ) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, run)
        self._name = f"{server_id}/{uuid.uuid4().hex[:12]}"  # a server that is started again keeps its id
        self._claim_idle_ms = int(claim_idle_seconds * 1000)
        self._max_deliveries = max_deliveries

    async def prepare(self) -> None:
        """Create the streams' consumer groups, from their beginning. Harmless when they exist."""
        for stream, group in (("prompts", "rollout"), ("groups", "learner")):
            try:
                await self._redis.xgroup_create(self._scripts.key(stream), group, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def register(self, address: str, state: str, version: PolicyVersion | None, lease_seconds: float) -> None:
        """Take or renew the lease that makes this server one of `all replicas`. 0 seconds give it up, and nothing else:
        what it holds is then a dead server's."""
        incarnation, number = version or (0, 0)
        await self._scripts.call("lease", self._name, address, state, incarnation, number, lease_seconds)

    async def take(
        self, count: int, version: PolicyVersion, max_lag: int, working_on: Collection[str] = ()
    ) -> list[Delivery]:
        """Up to `count` prompts, those that were held before first; none without a lease or when too stale.

        One whose holder has died (`num_deliveries` above 1) comes by itself, to a server that works on nothing; until
        one is free, nobody gets anything new. After an error the next call returns what the lost answer named.
        `working_on`: entries that this process holds, so that late heartbeats do not hand it its own.

        Raises:
            SchemaVersionError: the learner would not understand this build's groups, or this build not its prompts.
                Whatever was taken has been given back.
        """
        began = now()
        reply = await self._scripts.call(
            "take",
            self._name,
            count,
            version.incarnation,
            version.number,
            max_lag,
            self._claim_idle_ms,
            self._max_deliveries,
            SCHEMA_VERSION,
            *working_on,
        )
        if reply[0] == b"schema":
            raise schema_refusal(int(reply[1]), "the learner of this run")
        if reply[0] != b"ok":
            return []
        try:
            taken = [
                Delivery(entry_id.decode(), decode_prompt(payload), num_deliveries)
                for entry_id, payload, num_deliveries in reply[1]
            ]
        except SchemaVersionError:
            for entry_id, _, _ in reply[1]:  # those too that could be read: nobody has died
                await self._scripts.call("give_back", self._name, entry_id)
            raise
        for delivery in taken:
            record_span("take", delivery.prompt.id, began, num_deliveries=delivery.num_deliveries)
        return taken

    async def publish(self, delivery: Delivery, group: Group) -> bool:
        """Hand the scored group to the learner. False: another server holds the prompt now; discard the group."""
        with span("publish", group.prompt.id):
            return bool(
                await self._scripts.call(
                    "publish",
                    self._name,
                    delivery.entry_id,
                    str(group.prompt.id),
                    encode_group(group),
                    str(group.oldest_version),
                )
            )

    async def give_back(self, delivery: Delivery) -> bool:
        """Put the prompt back, uncounted. False: it was not ours any more."""
        return bool(await self._scripts.call("give_back", self._name, delivery.entry_id))

    async def dead(self, delivery: Delivery, reason: str, detail: str = "") -> bool:
        """The prompt can never be sampled (`reason`: a short name for the ledger). False: it was not ours any more."""
        return bool(
            await self._scripts.call("bury", self._name, delivery.entry_id, str(delivery.prompt.id), reason, detail)
        )

    async def fail(self, delivery: Delivery, detail: str) -> bool:
        """Put the prompt back and count it: its sampling failed, though nobody died. False: it was not ours."""
        id_ = str(delivery.prompt.id)
        return bool(await self._scripts.call("fail", self._name, delivery.entry_id, id_, detail))

    async def leave(self) -> None:
        """The end, of its own will: the lease goes, and all that this process holds is put back, uncounted."""
        await self._scripts.call("leave", self._name)

    async def reconnect(self) -> None:
        """Leave every connection: the name may lead to another server by now."""
        await self._redis.connection_pool.disconnect(inuse_connections=False)

    async def note_error(self, delivery: Delivery, detail: str) -> bool:
        """This holder is about to die of `detail`: what is told if the prompt has to be buried. Keeps the claim."""
        id_ = str(delivery.prompt.id)
        return bool(await self._scripts.call("note_error", self._name, delivery.entry_id, id_, detail))

    async def heartbeat(self, deliveries: Sequence[Delivery]) -> set[str]:
        """Keep holding these. Returns the entry ids that are still ours."""
        if not deliveries:
            return set()
        kept = await self._scripts.call("heartbeat", self._name, *(held.entry_id for held in deliveries))
        return {entry.decode() for entry in kept}
