"""What a receiver refuses before it meets anybody, and that no question to the learner's store waits for ever."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from mmr1 import nccl
from mmr1_rollout_server.transfer_groups import Asked, join


@pytest.mark.parametrize(
    ("transport", "why"),
    [("carrier-pigeon", "is not one of gloo, nccl, ipc"), ("nccl", "runs on the CPU"), ("ipc", "runs on the CPU")],
)
def test_a_transport_that_this_engine_lacks_is_refused(transport: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        join(transport, "127.0.0.1", 1, "prefix", 1, 2, 1.0, torch.device("cpu"))


def test_a_question_without_an_answer_is_given_up() -> None:
    released = threading.Event()
    asked, began = Asked(released.wait), time.monotonic()
    assert not asked.answered(0) and not asked.answered(0.2)
    assert time.monotonic() - began < 5.0
    released.set()
    assert asked.answered(5.0)
    asked.check()


def test_a_question_that_fails_says_how() -> None:
    def fail() -> None:
        raise RuntimeError("the store is gone")

    asked = Asked(fail)
    assert asked.answered(5.0)
    with pytest.raises(RuntimeError, match="the store is gone"):
        asked.check()


def test_without_nccl_the_error_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    nccl._library.cache_clear()
    monkeypatch.setattr(nccl.ctypes, "CDLL", missing)
    with pytest.raises(nccl.NcclError, match=r"NCCL cannot be loaded: libnccl\.so\.2"):
        nccl.unique_id()
