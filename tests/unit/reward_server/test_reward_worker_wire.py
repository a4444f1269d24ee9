"""What passes between the server and a worker: frames, results, progress, and when a worker counts as late."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.scoring import Scored
from mmr1_reward_server.worker_process import WorkerProcess
from mmr1_reward_server.worker_wire import (
    FrameReader,
    Progress,
    decode_items,
    decode_scored,
    encode_item,
    encode_scored,
    join_items,
    to_frame,
)
from tests.unit.reward_server.reward_scorers import item


async def test_frames_survive_any_cut() -> None:
    payloads = [b"", b"a", b"x" * 1000]
    stream = b"".join(map(to_frame, payloads))
    for size in (1, 2, 3, 5, 7, len(stream)):
        reader = FrameReader()
        cut = [stream[begin : begin + size] for begin in range(0, len(stream), size)]
        assert [payload for piece in cut for payload in reader.feed(piece)] == payloads


async def test_items_and_results_cross_unchanged() -> None:
    items = [
        Item(id="1", task="t", response="é\x00😀", solution=[1e400, -0.0, 2**70, None], image_size=(1, 2)),
        item("t"),
    ]
    assert decode_items(join_items(map(encode_item, items))) == items
    results = [
        Result(id="1", outcome=Outcome.OK, reward=-0.5, components={"a": 1.0}, parsed=[1, "é"], detail="d"),
        Result(id="2", outcome=Outcome.INVALID_OUTPUT, reward=0.0),
        Result(id="3", outcome=Outcome.VERIFIER_ERROR, reward=None),
    ]
    sent = encode_scored([Scored(result, 0.25, refused=result.id == "3") for result in results])
    got = decode_scored(sent)
    assert got == [Scored(result, 0.25) for result in results]
    assert [(one.result, one.outcome, one.reward, one.seconds, one.refused) for one in got] == [
        (result, result.outcome, result.reward, 0.25, result.id == "3") for result in results
    ]
    whole = {len(encode_scored(got[:number])) for number in range(len(got) + 1)}
    for cut in set(range(len(sent))) - whole:
        with pytest.raises(ValueError, match="cut off"):
            decode_scored(sent[:cut])
    for wrong in (sent.replace(b"ok  ", b"so  "), sent.replace(b"timeout", b"ok     "), sent[:8] + sent[40:]):
        if wrong != sent:
            with pytest.raises(ValueError, match="a result"):
                decode_scored(wrong)


async def test_progress_is_seen_through_another_mapping() -> None:
    descriptor = Progress.new_descriptor()
    ours, theirs = Progress(descriptor), Progress(descriptor)
    os.close(descriptor)
    assert ours.look()[0] < 0
    theirs.begin(3, 12.5)
    assert ours.look() == (3, 12.5)
    theirs.rest()
    assert ours.look()[0] < 0
    ours.close()
    theirs.close()


_BUSY_WRITER = """
import sys, time
from mmr1_reward_server.worker_wire import Progress
progress = Progress(int(sys.argv[1]))
print("writing", flush=True)
while True:
    for position in (0, 1, 255):
        progress.begin(position, time.monotonic())
    progress.rest()
"""


async def test_a_worker_that_moves_on_is_never_taken_for_late() -> None:
    descriptor = Progress.new_descriptor()
    worker = WorkerProcess(lambda *_: None)
    worker._progress, worker._busy, worker._sent_at = Progress(descriptor), True, time.monotonic()
    argv = [sys.executable, "-c", _BUSY_WRITER, str(descriptor)]
    with subprocess.Popen(argv, pass_fds=[descriptor], stdout=subprocess.PIPE) as writer:
        os.close(descriptor)
        assert writer.stdout is not None and writer.stdout.readline()
        try:
            # The writer may wait long for a processor, but not for an hour.
            left = [worker.due_in(3600.0) or 0.0 for _ in range(200_000)]
        finally:
            writer.kill()
    assert min(left) > 1000
    assert worker.late_position is None


async def test_a_worker_is_late_when_a_second_look_finds_it_at_the_same_item() -> None:
    descriptor = Progress.new_descriptor()
    worker = WorkerProcess(lambda *_: None)
    progress = worker._progress = Progress(descriptor)
    os.close(descriptor)
    worker._busy = True
    progress.begin(0, time.monotonic() - 2.0)
    assert (worker.due_in(1.0) or 0.0) > 0
    progress.begin(1, time.monotonic() - 2.0)  # it has moved on meanwhile
    assert (worker.due_in(1.0) or 0.0) > 0
    assert worker.late_position is None
    assert (worker.due_in(1.0) or 0.0) < 0
    assert worker.late_position == 1
