"""Rank 0's connections to the rollout servers: who holds a lease, who answers, what each is asked, who was at fault.

Whatever may block runs in a thread, and is waited for with an ear for being told to stop. Knows no weights and no
versions but those that leases name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import grpc

from mmr1.config import RunConfig
from mmr1.errors import WeightUpdateError
from mmr1.records import PolicyVersion
from mmr1.rollout_access import RolloutAccess
from mmr1.rollout_client import LOAD_SECONDS, RolloutClient
from mmr1.streams import Member, RunQueue
from mmr1_learner.left_out import LeftOut
from mmr1_learner.waiting import Tick, rest, results

ANSWER_SECONDS = 5.0  # a server that does not say in this time how it is will not follow an update either
_DEAF = ("starting", "draining")  # states in which every verb is refused
_T = TypeVar("_T")


class Servers:
    """Those of one run. `_members` are those of the last committed update."""

    def __init__(self, config: RunConfig, queue: RunQueue) -> None:
        self._config = config
        self._queue = queue
        self._access = RolloutAccess.from_config(config)
        self._members: tuple[Member, ...] = ()
        self._clients: dict[str, RolloutClient] = {}
        self._pool = ThreadPoolExecutor(max_workers=128, thread_name_prefix="weights")
        self._left_out = LeftOut()

    def wait_for_servers(
        self, count: int, tick: Tick, timeout_seconds: float = LOAD_SECONDS, between: Tick | None = None
    ) -> list[Member]:
        """Wait until `count` rollout servers accept weights: as long as one may take to load.

        `between` is called in the place of `tick` where none of them is being asked.

        Raises:
            WeightUpdateError: none came in time. Fewer than `count`, but at least one, is enough when the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            members = self._answering(self._queue.members(), tick)
            if len(members) >= count:
                return members
            if time.monotonic() > deadline:
                if members:
                    return members
                raise WeightUpdateError(f"no rollout server answers after {timeout_seconds:.0f} s; is one running?")
            rest(0.1, between or tick)

    def clients(self) -> list[RolloutClient]:
        """The servers of the last committed update."""
        return [self._client(member) for member in self._members]

    def behind(self, version: PolicyVersion, tick: Tick) -> list[Member]:
        """Servers that do not hold `version`: newly started ones, or ones that missed an update.

        One that an update has failed at is none of them for a while.
        """
        behind = [member for member in self._queue.members() if member.version != version]
        return self._answering(self._left_out.others(behind), tick)

    def call(self, question: Callable[[], _T], tick: Tick) -> _T:
        """Ask a server something that takes long. Raises what `question` and `tick` do."""
        return results([self.begin(question)], tick)[0]

    def begin(self, question: Callable[[], _T]) -> Future[_T]:
        """The same, without waiting for the answer."""
        return self._pool.submit(question)

    def close(self) -> None:
        """Whatever still waits for one of them ends."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _everywhere(self, clients: list[RolloutClient], verb: Callable[[RolloutClient], object], tick: Tick) -> None:
        results([self._submit(client, verb) for client in clients], tick)

    def _submit(self, client: RolloutClient, verb: Callable[[RolloutClient], _T]) -> Future[_T]:
        return self._pool.submit(self._ask, client, verb)

    def _ask(self, client: RolloutClient, verb: Callable[[RolloutClient], _T]) -> _T:
        """Whether it fails is remembered of this server."""
        return self._left_out.watch(client.address, lambda: verb(client))

    def _answering(self, members: Sequence[Member], tick: Tick) -> list[Member]:
        """Those that take verbs now. A lease outlives its holder for a while; to wait for a dead one helps nobody."""
        answers = results([self._pool.submit(_answers, self._client(member)) for member in members], tick)
        for member, answered in zip(members, answers, strict=True):
            if not answered:
                # A new connection next time: this one would wait ever longer between its attempts.
                self._client(member).close()
                del self._clients[member.address]
        return [member for member, answered in zip(members, answers, strict=True) if answered]

    def _client(self, member: Member) -> RolloutClient:
        if member.address not in self._clients:
            self._clients[member.address] = RolloutClient(
                member.address, self._config.run, self._queue.incarnation, self._access
            )
        return self._clients[member.address]


def _answers(client: RolloutClient) -> bool:
    try:
        return client.status(ANSWER_SECONDS).state not in _DEAF
    except grpc.RpcError:
        return False
