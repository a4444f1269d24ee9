"""What the queue costs: groups a second of one Redis core, milliseconds and bytes a group, seconds to recover 100,000.

    python benchmarks/queue.py                   # a minute and a half; Redis on one core, its clients on the other

Groups of 8 rollouts of 256 tokens go through the real classes and a real redis-server, started as `mmr1 up` starts it
(append-only file, flushed each second). Each figure is printed as a ratio to its limit, and the program fails when one
is beyond it. It measures no engine and no reward server, and no waiting: only what the queue itself adds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis.asyncio

sys.path.append(str(Path(__file__).resolve().parent))  # after the standard library, whose `queue` is meant by others

from queue_bench import RUN, RUN_ID, VERSION, Figure, Server, content_bytes, make_group, make_prompt, serving
from queue_recovery import recovery

from mmr1.records import Group, Prompt, PromptId
from mmr1.streams import PromptConsumer, RunQueue
from mmr1.wire import encode_group

BATCH = 32  # groups of one optimizer step
MIN_GROUPS_PER_SECOND = 1500.0
MAX_MILLISECONDS = 3.0
MAX_BYTES_RATIO = 1.3


class Line:
    """A learner's queue and a rollout server's end of it, with what travels between them."""

    def __init__(self, server: Server, client: redis.asyncio.Redis) -> None:
        self.queue = RunQueue(server.client(), RUN)
        self.queue.become_writer(RUN_ID)
        self.consumer = PromptConsumer(client, RUN, "rollout-0", claim_idle_seconds=600, max_deliveries=3)
        rng = random.Random(0)
        self._groups = [make_group(make_prompt(index), rng) for index in range(64)]
        self._next = 0

    async def join(self) -> None:
        await self.consumer.register("127.0.0.1:1", "serves", VERSION, 3600)

    def prompts(self, count: int) -> list[Prompt]:
        self._next += count
        return [make_prompt(position) for position in range(self._next - count, self._next)]

    def group_of(self, prompt: Prompt) -> Group:
        """Of other rollouts each time; making new ones would be most of the work."""
        return replace(self._groups[prompt.id.position % len(self._groups)], prompt=prompt)

    async def publish(self, prompts: Sequence[Prompt]) -> None:
        """Feed, take and publish them, as many at once as a step has."""
        for prompt in prompts:
            self.queue.feed(prompt)
        held = await self.consumer.take(len(prompts), VERSION, 1)
        await asyncio.gather(*(self.consumer.publish(one, self.group_of(one.prompt)) for one in held))


@contextlib.asynccontextmanager
async def line_on(server: Server) -> Any:
    async with redis.asyncio.Redis.from_url(server.url) as client:
        line = Line(server, client)
        await line.join()
        yield line


async def throughput(server: Server, seconds: float) -> list[Figure]:
    """Publish, consume and acknowledge; what Redis works for it, and the same by the clock with clients on one core."""
    async with line_on(server) as line:
        await line.publish(line.prompts(BATCH))  # scripts are loaded, connections open
        finished = await _finish(line)
        num_groups, redis_seconds, clock_seconds = 0, 0.0, 0.0
        while clock_seconds < seconds:
            prompts = line.prompts(BATCH)
            for prompt in prompts:
                line.queue.feed(prompt)
            held = await line.consumer.take(BATCH, VERSION, 1)
            groups = [(one, line.group_of(one.prompt)) for one in held]
            worked, begun = server.cpu_seconds(), time.perf_counter()
            await asyncio.gather(*(line.consumer.publish(one, group) for one, group in groups))
            finished = await _finish(line)
            clock_seconds += time.perf_counter() - begun
            redis_seconds += server.cpu_seconds() - worked
            num_groups += finished
        assert line.queue.ledger().balanced and line.queue.ledger().pending == 0
    print(
        f"publish, consume, acknowledge: {num_groups} groups, {num_groups / clock_seconds:.0f} a second with the "
        f"clients' Python on one core; Redis worked {1e6 * redis_seconds / num_groups:.0f} us a group"
    )
    rate = num_groups / redis_seconds
    return [Figure("publish + consume + acknowledge, of one Redis core", rate, MIN_GROUPS_PER_SECOND, "groups/s", True)]


async def _finish(line: Line) -> int:
    groups = line.queue.read(BATCH)
    ids = [group.prompt.id for group in groups]
    line.queue.mark_applied(ids)
    return line.queue.acknowledge(ids)


async def latency(server: Server, num_steps: int) -> list[Figure]:
    """One group at a time through the stations, encoding and decoding included; the step's end shared by its groups."""
    stations: dict[str, list[float]] = {name: [] for name in ("feed", "take", "publish", "read", "finish")}
    async with line_on(server) as line:
        await line.publish(line.prompts(BATCH))
        await _finish(line)
        worked, client_worked = server.cpu_seconds(), time.process_time()
        for _ in range(num_steps):
            ids = [await _one_group(line, prompt, stations) for prompt in line.prompts(BATCH)]
            begun = time.perf_counter()
            line.queue.mark_applied(ids)
            assert line.queue.acknowledge(ids) == BATCH
            stations["finish"] += [(time.perf_counter() - begun) / BATCH] * BATCH
        worked, client_worked = server.cpu_seconds() - worked, time.process_time() - client_worked
    totals = sorted(map(sum, zip(*stations.values(), strict=True)))
    parts = ", ".join(f"{name} {1e3 * statistics.median(each):.2f}" for name, each in stations.items())
    print(f"one group at a time, median ms: {parts}; p90 of all {1e3 * totals[len(totals) * 9 // 10]:.2f}")
    clients, of_redis = (1e3 * seconds / len(totals) for seconds in (client_worked, worked))
    print(f"  of processor time, mean ms a group: the clients' Python {clients:.2f}, Redis {of_redis:.2f}")
    return [Figure("what the queue adds to a group, median", 1e3 * statistics.median(totals), MAX_MILLISECONDS, "ms")]


async def _one_group(line: Line, prompt: Prompt, stations: dict[str, list[float]]) -> PromptId:
    marks = [time.perf_counter()]
    line.queue.feed(prompt)
    marks.append(time.perf_counter())
    (held,) = await line.consumer.take(1, VERSION, 1)
    group = line.group_of(held.prompt)
    marks.append(time.perf_counter())
    assert await line.consumer.publish(held, group)
    marks.append(time.perf_counter())
    (got,) = line.queue.read(1)
    marks.append(time.perf_counter())
    for name, begin, end in zip(stations, marks, marks[1:], strict=False):
        stations[name].append(end - begin)
    return got.prompt.id


async def size(server: Server, num_groups: int) -> list[Figure]:
    """Of the message, and of Redis' memory while groups wait in it."""
    async with line_on(server) as line:
        prompts = line.prompts(num_groups)
        groups = [line.group_of(prompt) for prompt in prompts]
        content = statistics.fmean(map(content_bytes, groups))
        message = statistics.fmean(len(encode_group(group)) for group in groups)
        before = server.memory()
        for begin in range(0, num_groups, BATCH):
            await line.publish(prompts[begin : begin + BATCH])
        held = (server.memory() - before) / num_groups
        line.queue.acknowledge([prompt.id for prompt in prompts])
    print(
        f"a group's ids, log-probabilities and texts: {content:.0f} bytes; its message {message:.0f}, "
        f"in Redis' memory {held:.0f}"
    )
    return [
        Figure("bytes of a group's message to its content", message / content, MAX_BYTES_RATIO, ""),
        Figure("bytes of Redis' memory for a group to its content", held / content, MAX_BYTES_RATIO, ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the throughput's measurement")
    parser.add_argument("--groups", type=int, default=500, help="of latency and size")
    parser.add_argument("--pending", type=int, default=100_000, help="groups that are recovered")
    parser.add_argument("--only", nargs="+", choices=("throughput", "latency", "size", "recovery"))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.client_core})
    measurements: dict[str, Callable[[Server], list[Figure]]] = {
        "throughput": lambda server: asyncio.run(throughput(server, options.seconds)),
        "latency": lambda server: asyncio.run(latency(server, max(1, options.groups // BATCH))),
        "size": lambda server: asyncio.run(size(server, options.groups)),
        "recovery": lambda server: recovery(server, options.pending),
    }
    figures: list[Figure] = []
    for name in options.only or measurements:
        with serving(options.redis_core) as server:
            figures += measurements[name](server)
    print("\n" + "\n".join(map(str, figures)))
    sys.exit(0 if all(figure.holds for figure in figures) else 1)


if __name__ == "__main__":
    main()
