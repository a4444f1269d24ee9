"""Seconds until the queue goes on after a crash, with many groups pending. Used by queue_figures.py."""

from __future__ import annotations

import random
import time
from dataclasses import replace

from queue_bench import RUN, RUN_ID, VERSION, Figure, Server, make_group, make_prompt

from mmr1.records import Prompt, PromptId
from mmr1.streams import Ledger, RunQueue
from mmr1.wire import encode_group
from mmr1_learner.checkpoint import RunState
from mmr1_learner.resume import reconcile

MAX_RECOVERY_SECONDS = 30.0
BATCH = 32  # groups of one optimizer step


class _NoPrompts:
    """Stands where the learner makes prompts."""

    def training(self, id_: PromptId) -> Prompt:
        return replace(make_prompt(id_.position), id=id_)


def recovery(server: Server, num_pending: int) -> list[Figure]:
    """A learner that starts anew with so many groups waiting; Redis killed and started anew; Redis emptied."""
    _fill(server, num_pending)
    outstanding = tuple(PromptId(RUN, position) for position in range(num_pending))
    ledger = {**Ledger().as_dict(), "fed": num_pending}
    state = RunState(1, 1, num_pending, outstanding=outstanding, ledger=ledger)
    figures = [_recover(server, state, f"{num_pending:,} pending groups, learner killed")]
    time.sleep(1.5)  # the file is flushed each second
    server.kill()
    loaded = server.start()
    again = _recover(server, state, "", loaded)
    figures.append(replace(again, name=f"{num_pending:,} pending groups, Redis and learner killed"))
    server.client().flushall()
    figures.append(_recover(server, state, f"{num_pending:,} pending groups, Redis emptied: all fed again"))
    return figures


def _fill(server: Server, num_pending: int) -> None:
    """Groups in the stream as `publish` leaves them, read by a learner that is then gone."""
    queue = RunQueue(server.client(), RUN)
    queue.become_writer(RUN_ID)
    payload = encode_group(make_group(make_prompt(0), random.Random(0)))
    key = f"mmr1:{{{RUN}}}:"
    with server.client().pipeline(transaction=False) as pipeline:
        for position in range(num_pending):
            entry = f"{position + 1}-1"
            pipeline.xadd(f"{key}groups", {"id": f"{position}/0", "payload": payload}, id=entry)
            pipeline.hset(f"{key}items", f"{position}/0", f"g{entry} {VERSION}")
            if position % 500 == 499:
                pipeline.execute()
        pipeline.hset(f"{key}ledger", mapping={"fed": num_pending, "next_position": num_pending})
        for _ in range(num_pending // 1000):
            pipeline.xreadgroup("learner", "learner-1", {f"{key}groups": ">"}, count=1000)
            pipeline.execute()
    assert queue.ledger().balanced and queue.ledger().num_groups == num_pending


def _recover(server: Server, state: RunState, name: str, seconds: float = 0.0) -> Figure:
    begun = time.perf_counter()
    queue = RunQueue(server.client(), RUN)
    queue.become_writer(RUN_ID)
    became = time.perf_counter()
    reconcile(queue, state, _NoPrompts())  # type: ignore[arg-type]
    reconciled = time.perf_counter()
    queue.read(BATCH)
    ended = time.perf_counter()
    assert queue.ledger().balanced and queue.ledger().pending == len(state.outstanding)
    print(
        f"recovery: Redis loads {seconds:.1f} s, becoming the writer {became - begun:.1f}, reconciling "
        f"{reconciled - became:.1f}, the first step's groups {ended - reconciled:.2f}"
    )
    return Figure(name, seconds + ended - begun, MAX_RECOVERY_SECONDS, "s")
