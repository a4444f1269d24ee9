"""A prompt's way through the server, with the real Redis and the real reward app.

In the engine's place stands a sampler that the tests can hold, so that what is running at a given moment is known;
tests/e2e drives the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from PIL import Image
from redis.asyncio import Redis

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1.records import Group, PolicyVersion, Prompt
from mmr1.streams import PromptConsumer, RunQueue
from mmr1_reward_server.app import create_app
from mmr1_reward_server.client import RewardClient
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings
from mmr1_rollout_server.errors import PromptError
from mmr1_rollout_server.metrics import Metrics
from mmr1_rollout_server.scoring import Scorer
from mmr1_rollout_server.transfer import TransferPlan, WriteReport
from mmr1_rollout_server.weights import Policy
from mmr1_rollout_server.worker import PromptWorker
from tests.conftest import make_group, make_prompt
from tests.unit.reward_server.reward_in_process import InProcessScoring

RUN = "test"
PLAN = TransferPlan("gloo", "127.0.0.1", 1, "p", 1, 2, (), 1)


class HeldSampler:
    """Samples when `release` is set. Also accepts weights, so that a Policy can serve."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.release.set()
        self.running: list[int] = []
        self.prepared: list[int] = []
        self.may_prepare = asyncio.Event()
        self.may_prepare.set()
        self.num_started = 0
        self.is_dead = False
        self.failing: dict[int, Exception] = {}
        self.unreadable: set[int] = set()

    async def prepare(self, prompt: Prompt, images: list[Image.Image]) -> Prompt:
        await self.may_prepare.wait()
        self.prepared.append(prompt.id.position)
        if prompt.id.position in self.unreadable:
            raise PromptError("cannot be made ready")
        return prompt

    async def generate(self, prompt: Prompt, version: PolicyVersion) -> Group:
        position = prompt.id.position
        self.running.append(position)
        self.num_started += 1
        try:
            await self.release.wait()
            if position in self.failing:
                raise self.failing[position]
            group = make_group(prompt, number=version.number)
            return replace(group, rollouts=tuple(replace(rollout, score=None) for rollout in group.rollouts))
        finally:
            self.running.remove(position)

    async def init_transfer(self, plan: TransferPlan, deadline_seconds: float) -> None: ...
    async def start_update(self, *, adapter_only: bool = False) -> None: ...
    async def abort_update(self) -> None: ...
    async def receive_update(self, deadline_seconds: float) -> list[tuple[str, int]]:
        return []

    async def finish_update(self) -> WriteReport:
        return WriteReport(0, (), 0)


def reward_server() -> httpx.ASGITransport:
    """The real application, with scoring in this process: its own would take longer to start than a test waits."""
    tasks = builtin_tasks()
    return httpx.ASGITransport(create_app(Settings(), tasks, InProcessScoring(tasks)))


class Bench:
    """A worker, the learner's queue beside it, and everything between."""

    def __init__(self, url: str, folder: Path, transport: httpx.AsyncBaseTransport) -> None:
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        self.store = ImageStore(folder)
        self.sampler = HeldSampler()
        self.policy = Policy(RUN, on_change=lambda: None, on_stuck=lambda _: None)
        self.policy.engine_ready(self.sampler)
        self.sync = redis.Redis.from_url(url)
        self.queue = RunQueue(self.sync, RUN)
        self.incarnation = self.queue.become_writer()
        self.config = RunConfig(
            model="m",
            train_file=folder / "train.json",
            num_steps=1,
            per_device_batch_size=8,
            run=RUN,
            claim_idle_seconds=0.4,
            max_concurrent_prompts=4,
        )
        self.redis = Redis.from_url(url)
        self.transport = transport
        self.metrics = Metrics()
        self.stop = asyncio.Event()
        self.drain_seconds = 2.0

    async def serve(self, number: int = 1) -> None:
        version = PolicyVersion(self.incarnation, number)
        arguments: tuple[Any, ...] = (RUN, self.incarnation)
        await self.policy.init_transfer(*arguments, PLAN, 1.0)
        await self.policy.start(*arguments, version, 5.0)
        await self.policy.update(*arguments, version, 5.0)
        await self.policy.finish(*arguments, version, 5.0)
        await self.policy.resume(*arguments, version)
        self.queue.commit_version(version)

    def consumer(self, server_id: str, claim_idle_seconds: float = 0.4) -> PromptConsumer:
        return PromptConsumer(self.redis, RUN, server_id, claim_idle_seconds=claim_idle_seconds, max_deliveries=3)

    def feed(self, *positions: int) -> None:
        for position in positions:
            prompt = make_prompt(position)
            self.queue.feed(replace(prompt, images=(self.store.ref("a.png"),)))

    async def work(self) -> None:
        async with RewardClient("http://reward", 0.5, transport=self.transport) as client:
            worker = PromptWorker(
                self.consumer("rollout-0", self.config.claim_idle_seconds),
                self.store,
                self.sampler,  # type: ignore[arg-type]
                self.policy,
                Scorer(client, client),
                self.metrics,
                self.config,
                "127.0.0.1:1",
            )
            await worker.run(self.stop, self.drain_seconds)


@pytest.fixture
async def bench(redis_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(redis_url, tmp_path, reward_server())
    yield bench
    await bench.redis.aclose()


@asynccontextmanager
async def working(bench: Bench) -> AsyncIterator[None]:
    task = asyncio.create_task(bench.work())
    try:
        yield
    finally:
        bench.sampler.release.set()
        bench.policy.drain()
        bench.stop.set()
        await asyncio.wait_for(task, 15)


async def until(condition: Callable[[], Any], seconds: float = 8.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (result := condition()):
            await asyncio.sleep(0.02)
        return result


async def until_async(condition: Callable[[], Awaitable[Any]], seconds: float = 8.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (result := await condition()):
            await asyncio.sleep(0.02)
        return result


async def test_prompts_become_scored_groups_under_the_committed_version(bench: Bench) -> None:
    bench.feed(0, 1, 2)
    async with working(bench):
        await asyncio.sleep(0.2)
        assert not bench.queue.read(10)  # nothing before a version is committed
        await bench.serve()
        groups: list[Group] = []
        await until(lambda: groups.extend(bench.queue.read(10)) or len(groups) == 3)
    assert {group.prompt.id.position for group in groups} == {0, 1, 2}
    for group in groups:
        assert group.oldest_version == (bench.incarnation, 1)
        assert all(
            rollout.score and rollout.score.components.keys() == {"counting", "format"} for rollout in group.rollouts
        )
    assert bench.queue.ledger().balanced


async def test_without_redis_it_waits_and_can_be_told_to_stop(bench: Bench) -> None:
    await bench.redis.aclose()
    bench.redis = Redis(port=1)
    async with working(bench):
        await asyncio.sleep(0.3)


async def test_the_lease_says_what_the_server_can_do(bench: Bench) -> None:
    async with working(bench):
        [member] = await until(bench.queue.members)
        assert (member.server_id, member.state, member.version) == ("rollout-0", "accepts_weights", None)
    assert bench.queue.members() == []


async def test_no_more_than_max_concurrent_prompts_are_held(bench: Bench) -> None:
    bench.sampler.release.clear()
    bench.feed(*range(7))
    await bench.serve()
    async with working(bench):
        await until(lambda: len(bench.sampler.running) == 4)
        await asyncio.sleep(0.2)
        assert len(bench.sampler.running) == 4
        bench.sampler.release.set()
        await until(lambda: bench.queue.ledger().num_groups == 7)


async def test_held_prompts_are_not_claimed_while_they_run(bench: Bench) -> None:
    bench.sampler.release.clear()
    bench.feed(0)
    await bench.serve()
    other = bench.consumer("rollout-1")
    async with working(bench):
        await until(lambda: bench.sampler.running)
        await other.register("x", "serves", PolicyVersion(bench.incarnation, 1), 10.0)
        for _ in range(10):  # well past claim_idle_seconds
            await asyncio.sleep(0.1)
            assert await other.take(1, PolicyVersion(bench.incarnation, 1), 1) == []


async def test_a_group_that_another_server_claimed_is_discarded(bench: Bench) -> None:
    bench.sampler.release.clear()
    bench.config = bench.config.model_copy(update={"claim_idle_seconds": 60.0})  # heartbeats come too late
    bench.feed(0)
    await bench.serve()
    other = bench.consumer("rollout-1")
    version = PolicyVersion(bench.incarnation, 1)
    async with working(bench):
        await until(lambda: bench.sampler.running)
        await other.register("x", "serves", version, 10.0)
        [claimed] = await until_async(lambda: other.take(1, version, 1))
        assert claimed.num_deliveries == 1, "its holder is slow, and lives"
        bench.sampler.release.set()
        await until(lambda: not bench.sampler.running)
        await asyncio.sleep(0.3)
        assert bench.queue.ledger().num_groups == 0


async def test_a_prompt_that_looks_abandoned_is_not_handed_to_the_server_that_works_on_it(bench: Bench) -> None:
    """After a pause of Redis the holder may be the first to find its own entry idle: nobody died, nothing counts."""
    bench.sampler.release.clear()
    bench.feed(0)
    await bench.serve()
    async with working(bench):
        await until(lambda: bench.sampler.running)
        stream = "mmr1:{test}:prompts"
        [entry] = bench.sync.xpending_range(stream, "rollout", "-", "+", 1)
        bench.sync.xclaim(stream, "rollout", entry["consumer"], 0, [entry["message_id"]], idle=60_000, justid=True)
        bench.feed(1)  # taken by a later call of the same script, which must have passed the first by
        await until(lambda: bench.sampler.num_started == 2)
        [entry, _] = bench.sync.xpending_range(stream, "rollout", "-", "+", 2)
        assert entry["times_delivered"] == 1
        bench.sampler.release.set()
        await until(lambda: bench.queue.ledger().num_groups == 2)
    assert bench.sampler.num_started == 2


async def test_an_unreadable_image_and_a_refused_prompt_are_dead(bench: Bench) -> None:
    bench.feed(0, 1, 2)
    prompt = make_prompt(3)  # its image does not exist
    bench.queue.feed(prompt)
    bench.sampler.failing[1] = PromptError("999 prompt tokens")
    await bench.serve()
    async with working(bench):
        await until(lambda: bench.queue.ledger().num_groups == 2)
        await until(lambda: sum(bench.queue.ledger().dead.values()) == 2)
    assert bench.queue.ledger().dead == {"image_unreadable": 1, "prompt_refused": 1}
    assert bench.queue.ledger().balanced


async def test_a_reward_outage_gives_prompts_back_and_ends_by_itself(redis_url: str, tmp_path: Path) -> None:
    up = asyncio.Event()
    app = reward_server()

    class Flapping(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if not up.is_set():
                raise httpx.ConnectError("refused", request=request)
            return await app.handle_async_request(request)

    bench = Bench(redis_url, tmp_path, Flapping())
    bench.feed(0, 1)
    await bench.serve()
    async with working(bench):
        await asyncio.sleep(2.0)
        assert bench.queue.ledger().num_groups == 0
        up.set()
        await until(lambda: bench.queue.ledger().num_groups == 2)
    groups = bench.queue.read(10)
    assert all(rollout.score and rollout.score.outcome.has_reward for group in groups for rollout in group.rollouts)
    assert bench.queue.ledger().balanced
    await bench.redis.aclose()


async def test_a_weight_update_waits_for_running_prompts_and_the_next_carry_its_version(bench: Bench) -> None:
    bench.sampler.release.clear()
    bench.feed(0)
    await bench.serve()
    async with working(bench):
        await until(lambda: bench.sampler.running)
        updating = asyncio.create_task(bench.serve(number=2))
        await asyncio.sleep(0.2)
        bench.feed(1)
        await asyncio.sleep(0.2)
        assert bench.sampler.running == [0] and not updating.done()
        bench.sampler.release.set()
        await updating
        groups: list[Group] = []
        await until(lambda: groups.extend(bench.queue.read(10)) or len(groups) == 2)
    assert {group.prompt.id.position: group.oldest_version.number for group in groups} == {0: 1, 1: 2}


async def test_a_redis_that_turns_the_server_away_ends_it_by_name(bench: Bench, redis_url: str) -> None:
    bench.sync.acl_setuser("mute", enabled=True, passwords=["+mute-password"], categories=["-@all"], commands=["+ping"])
    url = redis_url.replace("redis://", "redis://mute:mute-password@")
    bench.redis = Redis.from_url(url)
    bench.config = bench.config.model_copy(update={"redis_url": url})
    with pytest.raises(ConfigurationError, match=r"no permissions.*docs/security\.md") as caught:
        await asyncio.wait_for(bench.work(), 10)
    assert "mute-password" not in str(caught.value)
