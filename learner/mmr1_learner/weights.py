"""Weight updates, the learner's side: a new policy version is real only when every receiver has proved it.

Init forms a collective with the lease holders; Start, Update and Finish move the weights; fingerprints and then a probe
by log-probabilities prove them; only then is the version committed and admission opened. Whatever fails makes the
update fail as a whole, and a fresh group is formed for the next try, without those servers that were at fault. Runs on
rank 0 alone; knows no losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import grpc
import structlog
import torch

from mmr1.config import RunConfig
from mmr1.errors import WeightUpdateError
from mmr1.records import PolicyVersion, TensorSpec
from mmr1.rollout_client import RolloutClient, WeightGroup
from mmr1.streams import Member, RunQueue
from mmr1_learner.broadcast import CPU, choose_transport, largest_bucket, name_of, send_tensors
from mmr1_learner.collective import Collective, Meeting
from mmr1_learner.device_collective import IpcCollective, NcclCollective
from mmr1_learner.parity import see_wrong_adapters
from mmr1_learner.phases import Phases
from mmr1_learner.published import Published
from mmr1_learner.published_adapters import PublishedAdapters
from mmr1_learner.servers import ANSWER_SECONDS, Servers
from mmr1_learner.waiting import Tick, rest, results

log = structlog.get_logger()

# Called with a client whose server holds the new weights and has admission closed; raises when it does not prove them.
Probe = Callable[[RolloutClient], float]

_ATTEMPTS = 4
_CONSEQUENCES_SECONDS = 0.5  # after the first failure: a dead server's own is not always the first


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """A committed update: seconds from closing admission to opening it, and the largest |delta log p| of the probes.

    `num_bytes` are those of the tensors that each server got. `phases` are seconds, tries that failed included: closing
    admission (what is being sampled ends), weights, proof, opening; and retrying, after a try that failed.
    """

    seconds: float
    num_servers: int
    probe_max_abs_dlogp: float | None
    num_bytes: int
    phases: dict[str, float] = field(default_factory=dict)


class WeightSender(Servers):
    """Keeps every rollout server at the learner's version."""

    def __init__(
        self,
        config: RunConfig,
        queue: RunQueue,
        policy: Published,
        master_address: str,
        device: torch.device = torch.device(CPU),  # noqa: B008 - a constant
    ) -> None:
        super().__init__(config, queue)
        self._policy = policy
        self._adapters = policy if isinstance(policy, PublishedAdapters) else None
        self._num_bytes, self._phases = 0, Phases()  # of the update
        self._buffer: torch.Tensor | None = None  # that processes on one GPU share
        self._master_address = master_address
        self._device = device
        self._collective: Meeting | None = None

    def close(self) -> None:
        """Leave the servers; whatever still waits for one of them ends."""
        self._leave()
        super().close()

    def update(
        self,
        version: PolicyVersion,
        probe: Probe | None,
        tick: Tick,
        adapter_probe: Probe | None = None,
        between: Tick | None = None,
        closed: Callable[[], None] | None = None,
    ) -> UpdateResult:
        """Bring all lease holders to `version`, or raise.

        Where adapters are sent alone, `adapter_probe` is asked with planted ones when a group is new. It raises
        WeightUpdateError when a server's are not the learner's.

        A try that fails is repeated with a fresh group of those that still hold a lease and answer. Those at
        fault are left out, as long as others are there. When none is left, the update waits for one to come back.
        `tick` is called while waiting, and `between` where nothing is under way: it ends the update by raising.
        `closed` is called when no server admits a prompt any more: what is sampled from then on is of this version.

        Raises:
            WeightUpdateError: it did not succeed in several tries, or no server came back. Nothing serves then.
            ParityError: `adapter_probe` does not see adapters that are not the learner's.
        """
        between, self._phases = between or tick, Phases()
        for number in range(1, _ATTEMPTS + 1):
            answering = self.wait_for_servers(1, tick, between=between)
            members = self._left_out.others(answering) or answering
            self._left_out.begin()
            try:
                return self._update(tuple(members), version, probe, tick, adapter_probe, closed or _nothing)
            except (grpc.RpcError, WeightUpdateError) as error:
                self._phases.enter("retrying")
                why = reason(error)
                log.warning("weight update failed", version=str(version), attempt=number, reason=why)
                if number == _ATTEMPTS:
                    raise WeightUpdateError(f"version {version}: {why}") from error
                rest(self._config.lease_seconds / 2, between)
        raise AssertionError("unreachable")

    @contextmanager
    def _all_or_nothing(self, members: tuple[Member, ...], tick: Tick) -> Iterator[None]:
        """Whatever fails inside ends the group and every call to its servers; those at fault are left out."""
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            on_failure.callback(self._left_out.judge, members)
            on_failure.callback(rest, _CONSEQUENCES_SECONDS, tick)
            yield
            on_failure.pop_all()

    def _update(
        self,
        members: tuple[Member, ...],
        version: PolicyVersion,
        probe: Probe | None,
        tick: Tick,
        adapter_probe: Probe | None,
        closed: Callable[[], None],
    ) -> UpdateResult:
        with self._all_or_nothing(members, tick):
            standing = self._collective
            collective = self._form_group(members, tick)
            clients = [self._client(member) for member in members]
            started = time.monotonic()
            self._num_bytes = 0
            if self._adapters is not None and collective is not standing:
                self._bring_base(collective, clients, version, adapter_probe, tick, closed)
            self._deliver(collective, clients, version, tick, closed, adapter_only=self._adapters is not None)
            worst = max((self._ask(client, probe) for client in clients), default=0.0) if probe else None
            self._phases.enter("opening")
            self._queue.commit_version(version)
            self._everywhere(clients, lambda c: c.resume(version), tick)
            self._phases.enter(None)
        self._left_out.succeeded(members)
        seconds = time.monotonic() - started
        return UpdateResult(seconds, len(clients), worst, self._num_bytes, self._phases.seconds)

    def _bring_base(
        self,
        collective: Meeting,
        clients: list[RolloutClient],
        version: PolicyVersion,
        probe: Probe | None,
        tick: Tick,
        closed: Callable[[], None],
    ) -> None:
        """The base model, and with it planted adapters: servers must be seen to apply them, and to have wrong ones.

        The policy's own may add nothing yet, and then a server that leaves adapters out would not be found out.
        """
        assert self._adapters is not None
        with self._adapters.planted():
            self._deliver(collective, clients, version, tick, closed)
            agreed = [self._ask(client, probe) for client in clients] if probe is not None else []
        if probe is not None:
            see_wrong_adapters(clients, probe, agreed)

    def _deliver(
        self,
        collective: Meeting,
        clients: list[RolloutClient],
        version: PolicyVersion,
        tick: Tick,
        closed: Callable[[], None],
        *,
        adapter_only: bool = False,
    ) -> None:
        """Start, Update and Finish on all servers at once: they hold the new tensors then, with admission closed."""
        limit, pause_limit = self._config.weight_update_deadline_seconds, self._config.pause_deadline_seconds
        self._phases.enter("closing")
        self._everywhere(
            clients, lambda c: c.start_weight_update(version, pause_limit, adapter_only=adapter_only), tick
        )
        closed()
        self._phases.enter("weights")
        sending = self._pool.submit(self._broadcast, collective, adapter_only)
        receiving = [self._submit(client, lambda c: c.update_weights(version, limit)) for client in clients]
        sent, *received = results([sending, *receiving], tick)
        for client, arrived in zip(clients, received, strict=True):
            self._left_out.watch(client.address, partial(_compare, client.address, sent, arrived))
        self._everywhere(clients, lambda c: c.finish_weight_update(version, limit), tick)
        self._phases.enter("proof")

    def _form_group(self, members: tuple[Member, ...], tick: Tick) -> Meeting:
        """A collective with these servers; the standing one when it is with the same, and none was started anew."""
        known = {(m.server_id, m.address) for m in self._members}
        fresh = any(member.version is None for member in members)
        if self._collective is not None and not fresh and known == {(m.server_id, m.address) for m in members}:
            return self._collective
        self._leave()
        limit = self._config.weight_update_deadline_seconds
        devices = self._devices(members, tick)
        transport = choose_transport(self._config.weight_transport, name_of(self._device), devices)
        # The workers of one server have ranks that follow each other; the server is told the first.
        ranks = [1 + sum(map(len, list(devices.values())[:index])) for index in range(len(members))]
        world_size = 1 + sum(map(len, devices.values()))
        self._collective = collective = self._make_collective(transport, world_size)
        group = WeightGroup(
            transport=transport,
            master_address=self._master_address,
            master_port=collective.port,
            store_prefix=collective.prefix,
            world_size=world_size,
            tensors=self._policy.manifest(),
            bucket_bytes=self._config.weight_bucket_bytes,
            adapter=self._adapters.adapter() if self._adapters else None,
        )
        joining = [self._pool.submit(collective.join)]
        for rank, member in zip(ranks, members, strict=True):
            join = partial(RolloutClient.init_weight_transfer, group=group, rank=rank, deadline_seconds=limit)
            joining.append(self._submit(self._client(member), join))
        results(joining, tick)
        self._members = members
        log.info("transfer group formed", transport=transport, servers=len(members), receivers=world_size - 1)
        return collective

    def _devices(self, members: tuple[Member, ...], tick: Tick) -> dict[str, Sequence[str]]:
        """Where each server's weights are, one name for each of its workers."""
        asked = [self._submit(self._client(member), lambda c: c.status(ANSWER_SECONDS)) for member in members]
        return {
            member.address: status.devices or (CPU,)
            for member, status in zip(members, results(asked, tick), strict=True)
        }

    def _make_collective(self, transport: str, world_size: int) -> Meeting:
        limit = self._config.weight_update_deadline_seconds
        if transport == "nccl":
            return NcclCollective(self._master_address, world_size, limit, self._device)
        if transport == "ipc":
            sent = [self._policy.manifest(), *([self._adapters.adapter().tensors] if self._adapters else [])]
            capacity = largest_bucket(sent, self._config.weight_bucket_bytes)
            if self._buffer is None or self._buffer.numel() < capacity:
                self._buffer = torch.empty(capacity, dtype=torch.uint8, device=self._device)
            return IpcCollective(self._master_address, world_size, limit, self._buffer)
        return Collective(self._master_address, world_size, limit)

    def _leave(self) -> None:
        if self._collective is not None:
            self._collective.close()
        self._collective, self._members = None, ()

    def _broadcast(self, collective: Meeting, adapter_only: bool) -> dict[str, int]:
        """Send every tensor, or every one of the adapters, bucket by bucket. Returns the fingerprint of each."""
        sent: dict[str, int] = {}
        if not adapter_only:
            base = self._adapters.base_tensors() if self._adapters else self._policy.named_tensors()
            sent |= self._send(collective, self._policy.manifest(), dict(base))
        if self._adapters:
            sent |= self._send(collective, self._adapters.adapter().tensors, dict(self._adapters.named_adapters()))
        return sent

    def _send(
        self, collective: Meeting, specs: Sequence[TensorSpec], tensors: dict[str, torch.Tensor]
    ) -> dict[str, int]:
        bucket_bytes, made = self._config.weight_bucket_bytes, self._policy.made
        sent, num_bytes = send_tensors(collective, specs, tensors, bucket_bytes, made)
        self._num_bytes += num_bytes
        return sent


def _compare(address: str, sent: dict[str, int], received: dict[str, int]) -> None:
    wrong = [name for name in sent if received.get(name) != sent[name]]
    if wrong or len(sent) != len(received):
        raise WeightUpdateError(
            f"{address} received {len(received)} of {len(sent)} tensors, {len(wrong)} with other bytes, first: "
            f"{wrong[0] if wrong else sorted(set(received) - set(sent))[0]}"
        )


def _nothing() -> None:
    """Nobody waits for it."""


def reason(error: Exception) -> str:
    """One line: a server's own words when it refused, else the error's."""
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
