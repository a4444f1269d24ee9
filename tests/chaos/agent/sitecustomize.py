"""Imported by every Python process of a stack under test: strikes when the process reaches a phase that was armed.

A test puts a file named after a phase into $MMR1_CHAOS; the first process that gets there takes it and sends the signal
it names, to itself or to the process it names, and to those named beside it. It also keeps a diary of the learner that
the learner's own files have no part in: from which step each life went on, and which groups each optimizer step was
made of. The program under test is the real one and knows nothing of this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(os.environ["MMR1_CHAOS"]) if "MMR1_CHAOS" in os.environ else None
MUTATIONS = [name for name in os.environ.get("MMR1_CHAOS_MUTATIONS", "").split(",") if name]

# phase: module, qualified name, whether it is reached before the call or after it, seconds later.
PHASES: dict[str, tuple[str, str, str, float]] = {
    "prompt taken": ("mmr1_rollout_server.worker", "PromptWorker._sample_and_score", "before", 0.0),
    "mid-generation": ("mmr1_rollout_server.engine", "Engine.generate", "before", 0.03),
    "scoring": ("mmr1_rollout_server.scoring", "Scorer.score", "before", 0.002),
    "before publish": ("mmr1.streams.prompts", "PromptConsumer.publish", "before", 0.0),
    "after publish": ("mmr1.streams.prompts", "PromptConsumer.publish", "after", 0.0),
    "weights arriving": ("mmr1_rollout_server.servicer", "RolloutServicer.UpdateWeights", "before", 0.01),
    "mid-step": ("mmr1_learner.trainer", "Trainer._optimize", "before", 0.0),
    "mid-checkpoint": ("mmr1_learner.checkpoint", "_describe_and_sync", "before", 0.0),
    "between checkpoint and ack": ("mmr1.streams.groups", "RunQueue.acknowledge", "before", 0.0),
    "weights leaving": ("mmr1_learner.weights", "WeightSender._broadcast", "before", 0.01),
}


def strike(phase: str) -> bool:
    """Send the armed signal, if there is one; whoever renames the file first does it. Signal 0 strikes nobody."""
    assert FOLDER is not None
    armed, taken = FOLDER / f"{phase}.armed", FOLDER / f"{phase}.taken"
    try:
        armed.rename(taken)
    except FileNotFoundError:
        return False
    order = json.loads(taken.read_text())
    victim = order["pid"] or os.getpid()
    struck = FOLDER / f"{phase}.struck"
    struck.with_suffix(".writing").write_text(json.dumps({"time": time.time(), "pid": victim}))
    struck.with_suffix(".writing").rename(struck)
    os.kill(victim, order["signal"])
    for other in order.get("beside", []):
        with contextlib.suppress(ProcessLookupError):  # its child, and gone with it
            os.kill(other, order["signal"])
    return True


def reaches(phase: str, function: Callable[..., Any], moment: str, delay: float) -> Callable[..., Any]:
    """`function`, which strikes at its phase."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            if moment == "before" and delay:
                asyncio.get_running_loop().call_later(delay, strike, phase)
            elif moment == "before":
                strike(phase)
            result = await function(*args, **kwargs)
            if moment == "after":
                strike(phase)
            return result

        return asynchronous

    @functools.wraps(function)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            strike(phase)
        result = function(*args, **kwargs)
        if moment == "after":
            strike(phase)
        return result

    return synchronous


def write_diary(**entry: Any) -> None:
    assert FOLDER is not None
    with (FOLDER / "diary.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), **entry}) + "\n")


def keep_diary(module: ModuleType) -> None:
    """Of rank 0: what was fed and dropped, when each step began and what it trained on, which checkpoint a life goes on
    from, and whether what servers say that they received is what was sent, before a version is committed."""
    notes = {
        "mmr1.streams.groups": note_queue,
        "mmr1_learner.leader": note_beginnings,
        "mmr1_learner.trainer": note_steps,
        "mmr1_learner.checkpoint": note_lives,
        "mmr1_learner.weights": note_updates,
    }
    if module.__name__ in notes:
        notes[module.__name__](module)


def note_queue(module: ModuleType) -> None:
    """A drop is noted before it is asked for and when it was done: a learner that dies in between may have done it."""
    feed, drop = module.RunQueue.feed, module.RunQueue.drop

    def noted_feed(self: Any, prompt: Any, **how: Any) -> bool:
        done: bool = feed(self, prompt, **how)
        write_diary(fed=prompt.id.position)
        return done

    def noted_drop(self: Any, id_: Any, reason: str, next_prompt: Any = None) -> bool:
        write_diary(dropping=str(id_), reason=reason, next=str(next_prompt.id) if next_prompt else None)
        done: bool = drop(self, id_, reason, next_prompt)
        if done:
            write_diary(dropped=str(id_), reason=reason)
        return done

    module.RunQueue.feed, module.RunQueue.drop = noted_feed, noted_drop


def note_beginnings(module: ModuleType) -> None:
    next_plan = module.Leader.next_plan

    def noted_plan(self: Any, step: int) -> Any:
        write_diary(begins=step + 1)
        return next_plan(self, step)

    module.Leader.next_plan = noted_plan


def note_steps(module: ModuleType) -> None:
    step = module.Trainer.step

    def noted_step(self: Any, plan: Any, *args: Any) -> Any:
        report = step(self, plan, *args)
        if os.environ.get("RANK", "0") == "0":
            write_diary(step=plan.step + 1, ids=[str(group.prompt.id) for group in plan.groups])
        return report

    module.Trainer.step = noted_step


def note_lives(module: ModuleType) -> None:
    newest = module.Checkpoints.newest

    def noted_newest(self: Any) -> Any:
        found = newest(self)
        write_diary(goes_on_from=found[1].step if found else 0)
        return found

    module.Checkpoints.newest = noted_newest


def note_updates(module: ModuleType) -> None:
    compare, update = module._compare, module.WeightSender._update

    def noted_compare(address: str, sent: Any, received: Any) -> None:
        write_diary(received=address, as_sent=sent == received)
        compare(address, sent, received)

    def noted_update(self: Any, members: Any, version: Any, *args: Any) -> Any:
        write_diary(update=str(version))
        result = update(self, members, version, *args)
        write_diary(committed=str(version))
        return result

    module._compare, module.WeightSender._update = noted_compare, noted_update


def spoil(module: ModuleType) -> None:
    """When "bytes leaving" is armed, one bit of the next bucket of weights changes on its way."""
    if module.__name__ == "mmr1_learner.collective":
        send = module.Collective.send

        def spoiled_send(self: Any, buffer: Any) -> None:
            if strike("bytes leaving"):
                buffer = buffer.clone()
                buffer[0] ^= 1
            send(self, buffer)

        module.Collective.send = spoiled_send


def strike_between_buckets(module: ModuleType) -> None:
    """When "bucket left" is armed, at the first bucket that has been sent: the broadcast is under way then."""
    if module.__name__ in ("mmr1_learner.collective", "mmr1_learner.device_collective"):
        for name in ("Collective", "NcclCollective", "IpcCollective"):
            owner = vars(module).get(name)
            if owner is not None and owner.__module__ == module.__name__:
                owner.send = reaches("bucket left", owner.send, "after", 0.0)


def change(module: ModuleType) -> None:
    """Everything that is to be done to a module of the program that has just been imported."""
    for phase, (name, path, moment, delay) in PHASES.items():
        if name == module.__name__:
            *owners, attribute = path.split(".")
            owner = functools.reduce(getattr, owners, module)
            setattr(owner, attribute, reaches(phase, getattr(owner, attribute), moment, delay))
    for mutation in MUTATIONS:
        from mutations import mutate

        mutate(mutation, module)
    spoil(module)
    strike_between_buckets(module)
    keep_diary(module)


class Finder(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders find a module of the program, and changes it once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(("mmr1.", "mmr1_learner.", "mmr1_rollout_server.")):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


if FOLDER is not None:
    sys.meta_path.insert(0, Finder())
