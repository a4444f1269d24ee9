"""The reward server crashes, freezes or is slow: no answer counts as wrong for it, and scoring goes on by itself.

The reward server is the real program in a process of its own, with rewards that sleep or fail when told to. Redis is
real too; in the engine's place stands the sampler of test_worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmr1.errors import ConfigurationError
from mmr1.records import Group, Outcome, RewardSpec
from mmr1.reward_access import reward_client
from mmr1_reward_server.client import RewardClient
from mmr1_rollout_server.breaker import FAILURES_TO_OPEN, Breaker
from mmr1_rollout_server.metrics import Metrics
from mmr1_rollout_server.scoring import RewardOutageError, Scorer
from mmr1_rollout_server.worker import PromptWorker
from tests.certificates import authority
from tests.conftest import free_port, make_prompt
from tests.models import small_config
from tests.unit.rollout_server.test_scoring import sampled
from tests.unit.rollout_server.test_worker import Bench, reward_server, until

REPOSITORY = Path(__file__).resolve().parents[3]
BUSY_SECONDS = 60.0  # a process that starts, on a busy machine
KEY = "a-key-of-the-reward-server"


class RewardProcess:
    """`python -m mmr1_reward_server` on a port of its own; started again it is on the same one."""

    def __init__(self, *options: str, **environment: str) -> None:
        self.port = free_port()
        self._options, self._environment = options, environment

    def start(self) -> None:
        command = [sys.executable, "-m", "mmr1_reward_server", "--port", str(self.port), *self._options]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, **self._environment}, stdout=subprocess.DEVNULL
        )

    async def ready(self) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", self.port), 0.5):
                        return
                except OSError:
                    assert self.process.poll() is None
                    await asyncio.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


class OverHttp(Bench):
    """The bench with a real client of a real process; `metrics`, `breaker` and the worker's own way to end."""

    def __init__(self, url: str, folder: Path, reward: RewardProcess) -> None:
        super().__init__(url, folder, httpx.AsyncHTTPTransport())
        self.reward_url = f"http://127.0.0.1:{reward.port}"
        self.deadline_seconds = 10.0
        self.breaker = Breaker(on_change=self._changed)
        self.changes: list[bool] = []

    def _changed(self) -> None:
        self.changes.append(self.breaker.is_open)

    async def work(self) -> None:
        async with (
            RewardClient(self.reward_url, self.deadline_seconds) as client,
            RewardClient(self.reward_url, 3.0) as prober,
        ):
            worker = PromptWorker(
                self.consumer("rollout-0", self.config.claim_idle_seconds),
                self.store,
                self.sampler,  # type: ignore[arg-type]
                self.policy,
                Scorer(client, prober, self.breaker),
                Metrics(),
                self.config,
                "127.0.0.1:1",
            )
            await worker.run(self.stop, self.drain_seconds)

    def all_scored(self, count: int) -> list[Group]:
        """Every group is there, each sample has a reward of the verifier's, no prompt counts a delivery or is dead."""
        groups = self.queue.read(count + 1)
        assert len(groups) == count
        for group in groups:
            assert all(rollout.score and rollout.score.outcome is Outcome.OK for rollout in group.rollouts)
        ledger = self.queue.ledger()
        assert ledger.balanced and not ledger.dead and not ledger.dropped
        return groups


@asynccontextmanager
async def working(bench: OverHttp) -> AsyncIterator[None]:
    task = asyncio.create_task(bench.work())
    try:
        yield
    finally:
        bench.sampler.release.set()
        bench.policy.drain()
        bench.stop.set()
        await asyncio.wait_for(task, BUSY_SECONDS)


@pytest.fixture
async def reward() -> AsyncIterator[RewardProcess]:
    process = RewardProcess("--workers", "1")
    process.start()
    await process.ready()
    yield process
    process.process.send_signal(signal.SIGCONT)
    process.kill()


def feed(bench: OverHttp, *positions: int, task: str = "format") -> None:
    for position in positions:
        prompt = replace(make_prompt(position), images=(bench.store.ref("a.png"),), rewards=(RewardSpec(task),))
        bench.queue.feed(prompt)


async def test_killed_and_started_again(redis_url: str, tmp_path: Path, reward: RewardProcess) -> None:
    bench = OverHttp(redis_url, tmp_path, reward)
    await bench.serve()
    feed(bench, 0, 1)
    async with working(bench):
        await until(lambda: bench.queue.ledger().num_groups == 2, BUSY_SECONDS)
        bench.sampler.release.clear()
        feed(bench, 2, 3, 4)
        await until(lambda: len(bench.sampler.running) == 3, BUSY_SECONDS)
        reward.kill()
        bench.sampler.release.set()
        await until(lambda: bench.changes == [True], BUSY_SECONDS)
        started = bench.sampler.num_started
        await asyncio.sleep(1.0)
        assert bench.queue.ledger().num_groups == 2
        assert bench.sampler.num_started == started, "nothing is sampled in vain"
        assert "does not score, prompts wait" in bench.breaker.detail
        reward.start()
        await until(lambda: bench.queue.ledger().num_groups == 5, BUSY_SECONDS)
    assert bench.changes == [True, False] and bench.breaker.detail == ""
    bench.all_scored(5)
    await bench.redis.aclose()


async def test_frozen_and_let_go_on(redis_url: str, tmp_path: Path, reward: RewardProcess) -> None:
    bench = OverHttp(redis_url, tmp_path, reward)
    bench.deadline_seconds = 1.0
    await bench.serve()
    async with working(bench):
        reward.process.send_signal(signal.SIGSTOP)
        feed(bench, 0, 1)
        await until(lambda: bench.changes == [True], BUSY_SECONDS)
        assert bench.queue.ledger().num_groups == 0
        reward.process.send_signal(signal.SIGCONT)
        await until(lambda: bench.queue.ledger().num_groups == 2, BUSY_SECONDS)
    bench.all_scored(2)
    await bench.redis.aclose()


async def test_told_to_stop_while_the_reward_server_is_away(
    redis_url: str, tmp_path: Path, reward: RewardProcess
) -> None:
    bench = OverHttp(redis_url, tmp_path, reward)
    await bench.serve()
    async with working(bench):
        reward.process.send_signal(signal.SIGSTOP)
        feed(bench, 0)
        await until(lambda: bench.sampler.num_started == 1, BUSY_SECONDS)
        begun = time.monotonic()
    assert time.monotonic() - begun < 15
    ledger = bench.queue.ledger()
    assert (ledger.num_prompts, ledger.num_groups, ledger.balanced) == (1, 0, True)
    version = bench.policy.version
    assert version is not None
    other = bench.consumer("rollout-1")
    await other.register("x", "serves", version, 10)
    (held,) = await other.take(1, version, 1)
    assert held.num_deliveries == 1, "an outage counts nothing"
    await bench.redis.aclose()


class Failing(httpx.AsyncBaseTransport):
    """The real app, whose scoring answers `status` when there is one; its list of tasks always answers."""

    def __init__(self, status: int | None) -> None:
        self.status = status
        self.num_asked = 0
        self._app = reward_server()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/score" and self.status is not None:
            self.num_asked += 1
            return httpx.Response(self.status, text="broken", request=request)
        return await self._app.handle_async_request(request)


async def outcomes(scorer: Scorer) -> set[Outcome]:
    group = await scorer.score(sampled("3", "4"), None)
    assert all(rollout.score and rollout.score.reward is None for rollout in group.rollouts)
    return {rollout.score.outcome for rollout in group.rollouts if rollout.score}


async def test_a_server_that_answers_and_never_scores_opens_the_circuit() -> None:
    broken = Failing(500)
    async with RewardClient("http://reward", 0.3, transport=broken) as client:
        scorer = Scorer(client, client)
        for _ in range(FAILURES_TO_OPEN - 1):
            assert await outcomes(scorer) == {Outcome.VERIFIER_ERROR}  # masked: no reward, no statistic
        with pytest.raises(RewardOutageError, match="answered 500"):
            await scorer.score(sampled("3"), None)
        asked = broken.num_asked
        with pytest.raises(RewardOutageError, match="answered 500"):
            await scorer.score(sampled("3"), None)
        assert broken.num_asked == asked, "an open circuit asks nothing"
        await scorer.probe()
        assert scorer.breaker.is_open, "a server that lists its tasks may still score none"
        broken.status = None
        await scorer.probe()
        assert not scorer.breaker.is_open
        broken.status = 500
        with pytest.raises(RewardOutageError):  # the first group after a probe decides
            await scorer.score(sampled("3"), None)
        broken.status = None
        await scorer.probe()
        await scorer.score(sampled("3"), None)
        broken.status = 500
        assert await outcomes(scorer) == {Outcome.VERIFIER_ERROR}, "a scored group makes earlier failures forgotten"


async def test_a_slow_server_times_out_and_is_then_left_alone() -> None:
    broken = Failing(503)  # is retried until the deadline
    async with RewardClient("http://reward", 0.3, transport=broken) as client:
        scorer = Scorer(client, client)
        begun = time.monotonic()
        await outcomes(scorer)
        assert time.monotonic() - begun < 1.0 and broken.num_asked >= 2


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_items_that_the_server_refuses_are_no_outage(status: int) -> None:
    async with RewardClient("http://reward", 0.3, transport=Failing(status)) as client:
        scorer = Scorer(client, client)
        for _ in range(FAILURES_TO_OPEN + 1):
            assert await outcomes(scorer) == {Outcome.VERIFIER_ERROR}
        assert not scorer.breaker.is_open


async def test_a_wrong_key_ends_the_server_by_name(redis_url: str, tmp_path: Path) -> None:
    keyed = RewardProcess("--workers", "1", MMR1_REWARD_API_KEY=KEY)
    keyed.start()
    try:
        await keyed.ready()
        bench = OverHttp(redis_url, tmp_path, keyed)
        await bench.serve()
        feed(bench, 0)
        with pytest.raises(ConfigurationError, match=r"answered 401.*set MMR1_REWARD_API_KEY") as caught:
            await asyncio.wait_for(bench.work(), BUSY_SECONDS)
        assert KEY not in str(caught.value)
        assert bench.queue.ledger().num_prompts == 1, "given back"
        await bench.redis.aclose()
    finally:
        keyed.kill()


async def test_a_reward_server_behind_tls_with_certificates_of_callers(tmp_path: Path) -> None:
    made = authority(tmp_path / "ca")
    certificate, key = made.sign("reward", "IP:127.0.0.1")
    own, own_key = made.sign("run")
    files = ("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", made.ca)
    secured = RewardProcess("--workers", "1", *map(str, files))
    secured.start()
    try:
        await secured.ready()
        url = f"https://127.0.0.1:{secured.port}"
        shown: dict[str, Any] = {"reward_client_cert": own, "reward_client_key": own_key}
        config = small_config(tmp_path, reward_url=url, reward_tls_ca=made.ca, **shown)
        async with reward_client(config, BUSY_SECONDS) as client:
            assert "format" in {task.name for task in await client.tasks()}
        with pytest.raises(ConfigurationError, match="https"):
            reward_client(config.model_copy(update={"reward_url": "http://127.0.0.1:1"}), 5.0)
    finally:
        secured.kill()


def test_pauses_between_probes_grow_and_are_spread() -> None:
    now = 0.0
    breaker = Breaker(clock=lambda: now, spread=lambda: 1.0)
    assert breaker.failed("gone", is_gone=True) and not breaker.is_probe_due
    pauses = []
    for _ in range(7):
        begun = now
        while not breaker.is_probe_due:
            now += 0.25
        pauses.append(now - begun)
        breaker.probed(False)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    breaker.probed(True)
    breaker.scored()
    assert breaker.failed("again") is False
    drawn = set()
    for _ in range(20):
        one = Breaker(clock=lambda: 0.0)
        one.failed("gone", is_gone=True)
        drawn.add(one._probe_at)
    assert len(drawn) > 1 and all(0.25 <= pause <= 0.75 for pause in drawn)
