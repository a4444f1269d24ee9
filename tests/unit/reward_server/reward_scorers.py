"""Scorers that fail in the ways scorers fail, as tasks that `--reward` can name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mmr1_reward_server.api import Example, Item, Outcome, Result
from mmr1_reward_server.registry import Params, Sample, Task, Verdict


def task_of(name: str, score: Callable[[Sample[Any, Params]], Verdict]) -> Task[Any, Params]:
    return Task(name, "", "", 0.0, TypeAdapter(Any), Params, score, None)


def _sleeps(sample: Sample[Any, Params]) -> Verdict:
    """Takes as many seconds as the solution says."""
    time.sleep(sample.solution)
    return Verdict(1.0)


def _marks(sample: Sample[Any, Params]) -> Verdict:
    """Writes its process id and a line end to the file that the solution names, then takes two seconds."""
    Path(sample.solution).write_text(f"{os.getpid()}\n", "ascii")
    time.sleep(2.0)
    return Verdict(1.0)


def _hangs(sample: Sample[Any, Params]) -> Verdict:
    time.sleep(60.0)
    return Verdict(1.0)


def _raises(sample: Sample[Any, Params]) -> Verdict:
    raise RuntimeError(f"cannot judge {sample.response}\nat all \ud800")


def _exits(sample: Sample[Any, Params]) -> Verdict:
    """Ends its process, as a crash in compiled code would."""
    os._exit(7)


def _segfaults(sample: Sample[Any, Params]) -> Verdict:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def _holds_lock(sample: Sample[Any, Params]) -> Verdict:
    """Never lets the interpreter go: no thread and no signal handler of its process runs meanwhile."""
    re.match(r"(a+)+$", "a" * 40 + "b")
    return Verdict(1.0)


def _process_id(sample: Sample[Any, Params]) -> Verdict:
    return Verdict(float(os.getpid()))


def _scribbles(sample: Sample[Any, Params]) -> Verdict:
    """Writes to a descriptor that is not its own, and prints."""
    print("timestamp=0 level=info event=forged")
    sockets = []
    for descriptor in range(3, 1024):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                sockets.append(descriptor)
    for descriptor in sockets:  # the last thing it does: the server reads it while the next item is in hand
        os.write(descriptor, b"\x00\x00\x00\x03abc")
    return Verdict(1.0)


_loaded: list[str] = []


def _loads(sample: Sample[Any, Params]) -> Verdict:
    """Slow the first time, as a scorer that imports a large package is."""
    if not _loaded:
        time.sleep(0.6)
        _loaded.append("large package")
    return Verdict(1.0)


LOADS = replace(
    task_of("loads", _loads),
    example=Example(
        item=Item(id="1", task="loads", response="", solution=None),
        result=Result(id="1", outcome=Outcome.OK, reward=1.0),
    ),
)
SLEEPS = task_of("sleeps", _sleeps)
MARKS = task_of("marks", _marks)
HANGS = task_of("hangs", _hangs)
RAISES = task_of("raises", _raises)
NAN = task_of("nan", lambda _: Verdict(float("nan")))
INFINITE_COMPONENT = task_of("infinite_component", lambda _: Verdict(1.0, {"x": float("inf")}))
UNSPEAKABLE = task_of("unspeakable", lambda _: Verdict(1.0, parsed=object()))  # type: ignore[arg-type]
SURROGATE = task_of("surrogate", lambda _: Verdict(1.0, parsed="\ud800"))
EXITS = task_of("exits", _exits)
SEGFAULTS = task_of("segfaults", _segfaults)
HOLDS_LOCK = task_of("holds_lock", _holds_lock)
PROCESS_ID = task_of("process_id", _process_id)
SCRIBBLES = task_of("scribbles", _scribbles)
DEEP = task_of("deep", lambda _: Verdict(1.0, parsed=json.loads("[" * 230 + "]" * 230)))

_NAMES = (
    *("SLEEPS", "RAISES", "NAN", "INFINITE_COMPONENT", "UNSPEAKABLE", "SURROGATE", "EXITS", "SEGFAULTS"),
    *("HOLDS_LOCK", "PROCESS_ID", "SCRIBBLES", "DEEP"),
)
# As `--reward` takes them.
FAILING = tuple(f"{__name__}:{name}" for name in _NAMES)


def item(task: str, response: str = "<answer>3</answer>", solution: Any = 3, name: str = "1") -> Item:
    return Item(id=name, task=task, response=response, solution=solution)
