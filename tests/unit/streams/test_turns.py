"""A learner's threads call Redis in turns: what was told is told again in its order, and nobody waits in silence."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
from redis.exceptions import ConnectionError

from mmr1.streams import Patience
from mmr1.streams.patience import WriterCalls


class Stop(Exception):
    pass


def calls(tick: Any) -> WriterCalls:
    return WriterCalls(Mock(), Mock(), Patience(tick, Mock(), Mock()), Mock())


def test_who_waits_for_another_threads_turn_hears_that_the_run_is_to_stop() -> None:
    """Redis is away for one of them, and has been for a while."""
    main, stopped = threading.get_ident(), threading.Event()

    def tick() -> None:
        if threading.get_ident() == main:
            raise Stop
        if stopped.is_set():
            raise Stop

    writer, asked = calls(tick), threading.Event()

    def away() -> None:
        asked.set()
        raise ConnectionError("refused")

    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(writer.insist, away)
        asked.wait()
        with pytest.raises(Stop):
            writer.insist(lambda: "never called")
        stopped.set()
        assert isinstance(other.exception(), Stop)
    assert writer.insist(lambda: 7) == 7, "and the turn is free again"


def test_a_call_is_told_and_remembered_before_another_threads_begins() -> None:
    """Else a Redis that was started anew would be told them the other way round."""
    begun, may_end = threading.Event(), threading.Event()

    def call(name: str, *_: Any) -> None:
        order.append(name)
        if name == "feed":
            begun.set()
            may_end.wait()

    order: list[str] = []
    writer = WriterCalls(Mock(), Mock(call=call), Patience(Mock(), Mock(), Mock()), Mock())
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(writer.write, "feed")
        begun.wait()
        second = threads.submit(writer.write, "commit_version")
        assert order == ["feed"]
        may_end.set()
        first.result(), second.result()
    assert [name for _, name, _ in writer._told] == order == ["feed", "commit_version"]
