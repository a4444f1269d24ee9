"""Durable checkpoints: written aside, synced, and real only once their manifest is there.

A checkpoint holds what training_state.py writes (weights, moments, random states), and what the queue must be
reconciled to; learning rate and temperature follow from the step. The manifest, written last by rank 0, has the size
and the hash of every file; only then does the folder get its name. One with a name whose files do not match is damaged.
All files are JSON or safetensors. A run's writers come one after the other, and each writes aside under its own number:
an older one that wakes up touches nothing of a newer one's. Knows files; decides nothing about training.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmr1.errors import ConfigurationError
from mmr1.records import PromptId
from mmr1.streams import Ledger
from mmr1_learner.errors import OvertakenError

_MANIFEST = "manifest.json"
_STATE = "state.json"
_REPLACED, _WRITING = ".replaced", ".writing"
_READERS = 8  # threads
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RunState:
    """What a learner must know to go on: the step and version it stands at, and every id the queue may still hold."""

    step: int  # optimizer steps done
    version_number: int
    next_position: int  # of the data order; it is past the prompts in flight
    contained: tuple[PromptId, ...] = ()  # applied since the previous checkpoint: to be acknowledged
    outstanding: tuple[PromptId, ...] = ()  # fed and in no optimizer step yet
    ledger: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # of training so far
    num_weight_updates: int = 0
    prompts_per_step: int = 0  # 0: written before it was kept
    num_steps: int = 0  # of the whole run, which schedules follow; 0: written before it was kept
    identity: dict[str, Any] = field(default_factory=dict)  # `mmr1.run_identity`; empty: written before it was kept
    options: dict[str, Any] = field(default_factory=dict)  # that may change from life to life; empty likewise
    lineage: tuple[tuple[int, int], ...] = ()  # what led here: each incarnation and the last version number it reached


class Checkpoints:
    """The checkpoints of one run, to one of its writers."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self._folder = folder
        self._keep_last = keep_last
        self._writer = 0

    def take_over(self, newest: RunState | None, writer: int = 0) -> None:
        """Rank 0: this is the run's one writer now. What others were writing goes, so that it never gets its name.

        Args:
            newest: what the newest checkpoint held when it was loaded; None: there was none.
            writer: a number above that of every earlier one: a learner's incarnation. 0 where nobody is superseded.

        Raises:
            OvertakenError: there is another one by now.
        """
        self._writer = writer
        for folder in self._folder.glob(f"step-??????{_WRITING}*"):
            number = folder.name.partition(_WRITING)[2].removeprefix("-")
            if not number.isdigit() or int(number) <= writer:
                # At once, however much is in it: who wakes up and goes on finds no such folder.
                gone = folder.with_name(f"{folder.name}.gone")
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
        found = self._named()
        if (_read(found[-1]) if found else None) != newest:
            raise OvertakenError("the last learner has written a checkpoint while this one was loading")

    def path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"

    def _aside(self, step: int) -> Path:
        """Where this writer writes a checkpoint before it is one."""
        return self._folder / f"step-{step:06d}{_WRITING}-{self._writer}"

    def start(self, step: int, allowed: Callable[[], None]) -> Path:
        """Rank 0: an empty folder to write into. `allowed` raises StaleWriterError when a newer learner exists."""
        allowed()
        folder = self._aside(step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def finish(self, state: RunState, allowed: Callable[[], None]) -> Path:
        """Rank 0, after every rank has written: sync, write the manifest, and rename. Durable when this returns.

        Args:
            allowed: as for `start`; called right before the rename. A learner that comes between the two takes the
                folder away, and nothing is renamed.
        """
        folder = self._aside(state.step)
        (folder / _STATE).write_text(json.dumps(_to_json(state), indent=1))
        paths = sorted(folder.rglob("*"))
        names = [str(path.relative_to(folder)) for path in paths if path.is_file()]
        files = _each(lambda name: _describe_and_sync(folder / name), names)
        for inner in (folder, *(path for path in paths if path.is_dir())):
            _sync_folder(inner)
        manifest = folder / _MANIFEST
        manifest.write_text(json.dumps({"step": state.step, "files": files}, indent=1))
        _describe_and_sync(manifest)
        _sync_folder(folder)
        allowed()
        final = self._give_name(folder, self.path(state.step))
        self._forget_old()
        return final

    def _give_name(self, folder: Path, final: Path) -> Path:
        """A checkpoint of that name, if there is one, is whole and found until the new one has the name."""
        folder.stat()  # if a newer learner has taken it away, nothing makes room for it
        replaced = final.with_name(f"{final.name}{_REPLACED}")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        folder.rename(final)
        _sync_folder(self._folder)
        _sync_folder(self._folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        return final

    def newest(self) -> tuple[Path, RunState] | None:
        """The newest checkpoint, or None. Its groups are acknowledged: from an older one nobody would train them again.

        Raises:
            ConfigurationError: it is damaged.
        """
        found = self._named()
        if not found:
            return None
        folder = found[-1]
        problem = verify(folder)
        if problem is not None:
            raise ConfigurationError(
                f"checkpoint {folder} is damaged: {problem}; put a copy in its place, or remove it to go on without "
                "what was trained since the one before"
            )
        return folder, _read(folder)

    def _named(self) -> list[Path]:
        """The checkpoints, oldest first. One about to be replaced counts where the new one is not there yet."""
        named = {path.name: path for path in self._folder.glob("step-??????")}
        for path in self._folder.glob(f"step-??????{_REPLACED}"):
            named.setdefault(path.name.removesuffix(_REPLACED), path)
        return [named[name] for name in sorted(named)]

    def _forget_old(self) -> None:
        named = self._named()
        replaced = [path for path in self._folder.glob(f"step-??????{_REPLACED}") if path not in named]
        for folder in [*named[: -self._keep_last], *replaced]:
            shutil.rmtree(folder)


def verify(folder: Path) -> str | None:
    """Why this folder is not a whole checkpoint, or None."""
    try:
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        described = {name: (expected["size"], expected["sha256"]) for name, expected in files.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return "no readable manifest"
    for name, (size, _) in described.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, and {size} by its manifest"
    hashes = _each(lambda name: _hash(folder / name), list(described))
    return next(
        (f"{name} has other bytes than its manifest says" for name in described if hashes[name] != described[name][1]),
        None,
    )


def ledger_at(state: RunState) -> Ledger:
    """The accounts to put into a Redis that has forgotten the run: everything outstanding is about to be fed again."""
    saved = state.ledger
    return Ledger(
        fed=saved["fed"] - len(state.outstanding),
        trained=saved["trained"],
        dropped=saved["dropped"],
        dead=saved["dead"],
        next_position=state.next_position,
    )


def _read(folder: Path) -> RunState:
    return _from_json(json.loads((folder / _STATE).read_text()))


def _to_json(state: RunState) -> dict[str, Any]:
    return asdict(state)


def _from_json(document: dict[str, Any]) -> RunState:
    ids = {name: tuple(PromptId(*id_) for id_ in document[name]) for name in ("contained", "outstanding")}
    lineage = tuple((incarnation, number) for incarnation, number in document.get("lineage", ()))
    return RunState(**{**document, **ids, "lineage": lineage})


def _each(look: Callable[[str], _T], names: Sequence[str]) -> dict[str, _T]:
    """By name, several at once: a checkpoint of a 3B model has 45 GB, and one core hashes one or two in a second."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="checkpoint") as threads:
        return dict(zip(names, threads.map(look, names), strict=True))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe_and_sync(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": _hash(path)}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
