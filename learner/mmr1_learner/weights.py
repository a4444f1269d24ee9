"""Weight updates, the learner's side: a new policy version is real only when every receiver has proved it.

Init forms a collective with the lease holders; Start, Update and Finish move the weights; fingerprints and then a probe
by log-probabilities prove them; only then is the version committed and admission opened. Whatever fails makes the
update fail as a whole, and a fresh group is formed for the next try. Runs on rank 0 alone; knows no losses.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import structlog
import torch
from torch.distributed import (  # type: ignore[attr-defined]
    BroadcastOptions,
    PrefixStore,
    ProcessGroupGloo,
    TCPStore,
)

from mmr1.config import RunConfig
from mmr1.errors import WeightUpdateError
from mmr1.records import PolicyVersion
from mmr1.rollout_client import RolloutClient, WeightGroup
from mmr1.streams import Member, RunQueue
from mmr1.weight_plan import buckets, fingerprint
from mmr1_learner.model import Policy

log = structlog.get_logger()

# Called with a client whose server holds the new weights and has admission closed; raises when it does not prove them.
Probe = Callable[[RolloutClient], float]

_ATTEMPTS = 4
SERVERS_SECONDS = 300.0  # an engine that is started anew takes a minute or two to load


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """A committed update: seconds from closing admission to opening it, and the largest |delta log p| of the probes."""

    seconds: float
    num_servers: int
    probe_max_abs_dlogp: float | None


class _Collective:
    """Rank 0 of a gloo group that stands beside torch.distributed's own: no global state, and every wait has an end."""

    def __init__(self, host: str, world_size: int, deadline_seconds: float) -> None:
        self.prefix = uuid.uuid4().hex  # a late member of an older group meets nobody
        self._limit = timedelta(seconds=deadline_seconds)
        self._world_size = world_size
        self.store = TCPStore(host, 0, world_size, is_master=True, timeout=self._limit, wait_for_workers=False)
        self._group: Any = None

    def join(self) -> None:
        """Meet the servers, which join at the same time."""
        self._group = ProcessGroupGloo(PrefixStore(self.prefix, self.store), 0, self._world_size, self._limit)

    def send(self, buffer: torch.Tensor) -> None:
        """Broadcast flat bytes. Raises RuntimeError when a receiver is gone or the time is over."""
        assert self._group is not None
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._group.broadcast([buffer], options).wait(self._limit)

    def close(self) -> None:
        if self._group is not None:
            self._group.abort()


class WeightSender:
    """Keeps every rollout server at the learner's version."""

    def __init__(self, config: RunConfig, queue: RunQueue, policy: Policy, master_address: str) -> None:
        self._config = config
        self._queue = queue
        self._policy = policy
        self._master_address = master_address
        self._collective: _Collective | None = None
        self._members: tuple[Member, ...] = ()
        self._clients: dict[str, RolloutClient] = {}
        self._pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="weights")

    def wait_for_servers(self, count: int, timeout_seconds: float, tick: Callable[[], None]) -> list[Member]:
        """Wait until `count` rollout servers accept weights.

        Raises:
            WeightUpdateError: none came in time. Fewer than `count`, but at least one, is enough when the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            members = self._queue.members()
            if len(members) >= count:
                return members
            if time.monotonic() > deadline:
                if members:
                    return members
                raise WeightUpdateError(f"no rollout server has a lease after {timeout_seconds:.0f} s; is one running?")
            tick()
            time.sleep(0.1)

    def clients(self) -> list[RolloutClient]:
        """The servers of the last committed update."""
        return [self._client(member) for member in self._members]

    def behind(self, version: PolicyVersion) -> list[Member]:
        """Lease holders that do not hold `version`: newly started ones, or ones that missed an update."""
        return [member for member in self._queue.members() if member.version != version]

    def update(self, version: PolicyVersion, probe: Probe | None, tick: Callable[[], None]) -> UpdateResult:
        """Bring all lease holders to `version`, or raise.

        A try that fails is repeated with a fresh group of those that still hold a lease: a dead server's lease runs out
        meanwhile. When none is left, the update waits for one to come back; `tick` is called meanwhile.

        Raises:
            WeightUpdateError: it did not succeed in several tries, or no server came back. Nothing serves then.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            members = self.wait_for_servers(1, SERVERS_SECONDS, tick)
            try:
                return self._try_update(version, tuple(members), probe)
            except (grpc.RpcError, RuntimeError, WeightUpdateError, TimeoutError) as error:
                reason = _reason(error)
                log.warning("weight update failed", version=str(version), attempt=attempt, reason=reason)
                self._leave()
                if attempt == _ATTEMPTS:
                    raise WeightUpdateError(f"version {version}: {reason}") from error
                time.sleep(self._config.lease_seconds / 2)
        raise AssertionError("unreachable")

    def _try_update(self, version: PolicyVersion, members: tuple[Member, ...], probe: Probe | None) -> UpdateResult:
        limit = self._config.weight_update_deadline_seconds
        self._form_group(members)
        clients = [self._client(member) for member in members]
        started = time.monotonic()
        self._everywhere(clients, lambda c: c.start_weight_update(version, self._config.pause_deadline_seconds))
        received = [self._pool.submit(client.update_weights, version, limit) for client in clients]
        sent = self._broadcast()
        for client, future in zip(clients, received, strict=True):
            _compare(client.address, sent, future.result())
        self._everywhere(clients, lambda c: c.finish_weight_update(version, limit))
        worst = max((probe(client) for client in clients), default=0.0) if probe else None
        self._queue.commit_version(version)
        self._everywhere(clients, lambda c: c.resume(version))
        return UpdateResult(time.monotonic() - started, len(clients), worst)

    def _form_group(self, members: tuple[Member, ...]) -> None:
        """A collective with these servers; the standing one when it is with the same, and none was started anew."""
        known = {(m.server_id, m.address) for m in self._members}
        fresh = any(member.version is None for member in members)
        if self._collective is not None and not fresh and known == {(m.server_id, m.address) for m in members}:
            return
        self._leave()
        limit = self._config.weight_update_deadline_seconds
        world_size = len(members) + 1
        collective = _Collective(self._master_address, world_size, limit)
        group = WeightGroup(
            transport="gloo",
            master_address=self._master_address,
            master_port=collective.store.port,
            store_prefix=collective.prefix,
            world_size=world_size,
            tensors=self._policy.manifest(),
            bucket_bytes=self._config.weight_bucket_bytes,
        )
        joining = [
            self._pool.submit(self._client(member).init_weight_transfer, group, rank, limit)
            for rank, member in enumerate(members, start=1)
        ]
        collective.join()
        for future in joining:
            future.result()
        self._collective, self._members = collective, members

    def _leave(self) -> None:
        if self._collective is not None:
            self._collective.close()
        self._collective, self._members = None, ()

    def _broadcast(self) -> dict[str, int]:
        """Send every tensor, bucket by bucket. Returns the fingerprint of each."""
        assert self._collective is not None
        tensors = dict(self._policy.named_tensors())
        sent = {}
        for bucket in buckets(self._policy.manifest(), self._config.weight_bucket_bytes):
            parts = []
            for spec in bucket:
                data = tensors[spec.name].detach().cpu().contiguous().view(-1).view(torch.uint8)
                sent[spec.name] = fingerprint(data.numpy().data)
                parts.append(data)
            self._collective.send(torch.cat(parts))
        return sent

    def _everywhere(self, clients: list[RolloutClient], verb: Callable[[RolloutClient], object]) -> None:
        for future in [self._pool.submit(verb, client) for client in clients]:
            future.result()

    def _client(self, member: Member) -> RolloutClient:
        if member.address not in self._clients:
            self._clients[member.address] = RolloutClient(member.address, self._config.run, self._queue.incarnation)
        return self._clients[member.address]


def _compare(address: str, sent: dict[str, int], received: dict[str, int]) -> None:
    wrong = [name for name in sent if received.get(name) != sent[name]]
    if wrong or len(sent) != len(received):
        raise WeightUpdateError(
            f"{address} received {len(received)} of {len(sent)} tensors, {len(wrong)} with other bytes, first: "
            f"{wrong[0] if wrong else sorted(set(received) - set(sent))[0]}"
        )


def _reason(error: Exception) -> str:
    """One line: a server's own words when it refused, else the error's."""
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
