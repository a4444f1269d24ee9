"""Who may speak to this server, and one verb at a time. It knows runs and incarnations, and nothing of weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from mmr1_rollout_server.errors import VerbRefusedError


class Turns:
    """The one learner that is heard.

    Args:
        run: verbs of other runs are refused.
        closed: the reason why no verb at all is answered now, or None.
    """

    def __init__(self, run: str, closed: Callable[[], str | None]) -> None:
        self.incarnation = 0
        self.lock = asyncio.Lock()
        self._run = run
        self._closed = closed

    @asynccontextmanager
    async def verb(
        self, name: str, run: str, incarnation: int, *, is_init: bool = False, wait_seconds: float = 0.0
    ) -> AsyncIterator[None]:
        """Refuse who may not speak; then hold the lock. Init waits for a verb of the learner it replaces.

        Raises:
            VerbRefusedError: nothing changed.
        """
        self._check_writer(name, run, incarnation, is_init=is_init)
        if self.lock.locked() and not is_init:
            raise VerbRefusedError(f"{name} while another verb is being carried out")
        try:
            async with asyncio.timeout(wait_seconds) if is_init else asyncio.timeout(None):
                await self.lock.acquire()
        except TimeoutError:
            raise VerbRefusedError(f"{name} while another verb is being carried out") from None
        try:
            self._check_writer(name, run, incarnation, is_init=is_init)
            yield
        finally:
            self.lock.release()

    def _check_writer(self, name: str, run: str, incarnation: int, *, is_init: bool) -> None:
        if run != self._run:
            raise VerbRefusedError(f"{name} of run {run!r}, but this server belongs to run {self._run!r}")
        if incarnation < self.incarnation:
            raise VerbRefusedError(f"{name} of incarnation {incarnation}, superseded by {self.incarnation}")
        if incarnation > self.incarnation and not is_init:
            raise VerbRefusedError(f"{name} of incarnation {incarnation}, which has not sent InitWeightTransfer")
        if (reason := self._closed()) is not None:
            raise VerbRefusedError(f"{name}: {reason}")
