"""`python -m tests.unit.deploy.logging_services WHICH REDIS_URL FOLDER`: a service's real code at work, with its logs.

A process of its own, because logging is set up once a process. Without engine and model, which log on their own.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from mmr1.telemetry import configure_logging, works_for


async def rollout(url: str, folder: Path) -> None:
    """One prompt is refused by the engine, one waits for a reward server that fails."""
    import httpx

    from mmr1_rollout_server.errors import PromptError
    from tests.unit.rollout_server.test_worker import RUN, Bench, until, working

    configure_logging("rollout-7")
    works_for(RUN)
    bench = Bench(url, folder, httpx.MockTransport(lambda _: httpx.Response(422, json={"error": "no such task"})))
    bench.sampler.failing[0] = PromptError("too long")
    await bench.serve(number=4)
    bench.feed(0, 1)
    async with working(bench):
        await until(lambda: bench.queue.ledger().dead and bench.queue.ledger().num_groups)
    await bench.redis.aclose()


def learner(url: str, folder: Path) -> None:
    """The image of two groups is gone when they are read."""
    from tests.unit.learner.run_of_a_test import Run

    configure_logging("learner-0")
    run = Run(url, folder)
    works_for(run.config.run)
    learner = run.learner()
    learner.source.feed()
    run.serve()
    (folder / "a.png").unlink()
    learner.leader.next_plan(0)


if __name__ == "__main__":
    which, url, folder = sys.argv[1:]
    if which == "rollout":
        asyncio.run(rollout(url, Path(folder)))
    else:
        learner(url, Path(folder))
