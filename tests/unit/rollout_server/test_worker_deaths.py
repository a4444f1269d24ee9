"""What a worker gives back, what it lets count as a death, and what it runs alone: a real Redis, a played engine."""

from __future__ import annotations

import asyncio
import threading

from PIL import Image

from mmr1.records import ImageRef, PolicyVersion
from mmr1.streams.accounts import read_dead
from mmr1_rollout_server.errors import EngineDiedError
from tests.unit.rollout_server.test_worker import RUN, Bench, bench, until, working

__all__ = ["bench"]  # a fixture


async def test_a_poison_prompt_takes_none_of_those_beside_it_with_it(bench: Bench) -> None:
    """SEMANTICS 5: three processes die of it. The others ran beside it once; after that it ran alone."""
    bench.feed(0, 1, 2, 3)
    await bench.serve()
    died_with: list[list[int]] = []
    for _ in range(3):
        bench.sampler.release.clear()
        bench.stop.clear()
        task = asyncio.create_task(bench.work())
        await until(lambda: 0 in bench.sampler.running)
        await asyncio.sleep(0.2)  # whatever may run beside it has begun by then
        died_with.append(sorted(bench.sampler.running))
        bench.sampler.failing = dict.fromkeys(bench.sampler.running, EngineDiedError("of prompt 0"))
        bench.sampler.release.set()
        await until(lambda: not bench.sampler.running)
        bench.stop.set()
        await asyncio.wait_for(task, 15)
        await asyncio.sleep(0.5)  # past claim_idle_seconds
    assert died_with == [[0, 1, 2, 3], [0], [0]]
    bench.sampler.failing.clear()
    bench.stop.clear()
    async with working(bench):
        await until(lambda: bench.queue.ledger().num_groups == 3)
    assert bench.queue.ledger().dead == {"max_deliveries": 1}
    assert {group.prompt.id.position for group in bench.queue.read(8)} == {1, 2, 3}


async def test_what_a_stop_interrupts_is_given_back_uncounted(bench: Bench) -> None:
    bench.sampler.release.clear()
    bench.drain_seconds = 0.2
    bench.feed(0, 1)
    await bench.serve()
    task = asyncio.create_task(bench.work())
    await until(lambda: len(bench.sampler.running) == 2)
    bench.policy.drain()
    bench.stop.set()
    await asyncio.wait_for(task, 15)
    other, version = bench.consumer("rollout-1"), PolicyVersion(bench.incarnation, 1)
    await other.register("x", "serves", version, 10.0)
    assert [delivery.num_deliveries for delivery in await other.take(5, version, 1)] == [1, 1]


async def test_what_a_pause_for_new_weights_overtakes_is_given_back_uncounted(bench: Bench) -> None:
    """SEMANTICS 5: a pause counts nothing. Here it comes between the taking of a prompt and its sampling."""
    opening, opened = threading.Event(), bench.store.open

    def open_slowly(image: ImageRef) -> Image.Image:
        assert opening.wait(8)
        return opened(image)

    bench.store.open = open_slowly  # type: ignore[method-assign]
    bench.feed(0)
    await bench.serve()
    async with working(bench):
        await until(lambda: bench.sync.xpending("mmr1:{test}:prompts", "rollout")["pending"] == 1)
        await bench.policy.pause(RUN, bench.incarnation, 5.0)
        opening.set()
        stream = "mmr1:{test}:prompts"
        await until(lambda: bench.sync.xpending_range(stream, "rollout", "-", "+", 1, "nobody"))
        [entry] = bench.sync.xpending_range(stream, "rollout", "-", "+", 1)
        assert entry["times_delivered"] == 0
        await bench.policy.resume(RUN, bench.incarnation, PolicyVersion(bench.incarnation, 1))
        await until(lambda: bench.queue.ledger().num_groups == 1)
    assert bench.queue.ledger().balanced


async def test_what_runs_when_the_engine_dies_counts_as_a_death(bench: Bench) -> None:
    bench.feed(0)
    bench.sampler.failing[0] = EngineDiedError("gone")
    await bench.serve()
    async with working(bench):
        await asyncio.sleep(0.3)
    assert bench.sync.hgetall("mmr1:{test}:errors") == {b"0/0": b"gone"}, "what is told if it has to be buried"
    await asyncio.sleep(0.5)
    other, version = bench.consumer("rollout-1"), PolicyVersion(bench.incarnation, 1)
    await other.register("x", "serves", version, 10.0)
    assert [delivery.num_deliveries for delivery in await other.take(5, version, 1)] == [2]


async def test_a_prompt_whose_holder_died_runs_alone(bench: Bench) -> None:
    bench.feed(0, 1, 2, 3)
    await bench.serve()
    version = PolicyVersion(bench.incarnation, 1)
    dead = bench.consumer("rollout-dead")
    await dead.register("x", "serves", version, 10.0)
    assert len(await dead.take(2, version, 1)) == 2
    await dead.register("x", "serves", version, 0)
    await asyncio.sleep(0.5)  # past claim_idle_seconds, without a heartbeat
    bench.sampler.release.clear()
    seen: list[list[int]] = []
    async with working(bench), asyncio.timeout(60):
        while bench.queue.ledger().num_groups < 4:
            await asyncio.sleep(0.1)  # whatever may run beside the others has begun by then
            if bench.sampler.running:
                seen.append(sorted(bench.sampler.running))
                bench.sampler.release.set()  # those who wait now go on; who comes later waits
                bench.sampler.release.clear()
                await until(lambda: not set(bench.sampler.running) & set(seen[-1]))
    assert [running for running in seen if 0 in running] == [[0]]
    assert [running for running in seen if 1 in running] == [[1]]


async def test_an_error_of_one_request_is_told_tried_again_and_ends_with_the_prompt_dead(bench: Bench) -> None:
    """No prompt's failure is only a line in a log, and none takes others with it."""
    bench.feed(0, 1)
    bench.sampler.failing[0] = RuntimeError("CUDA error")
    await bench.serve()
    async with working(bench):
        await until(lambda: bench.queue.ledger().dead)
        await until(lambda: bench.queue.ledger().num_groups == 1)
    [dead] = read_dead(bench.sync, "test")
    assert dead.detail == "its holder died or failed 3 times: RuntimeError: CUDA error"
    assert bench.queue.ledger().balanced
