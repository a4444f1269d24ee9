"""Copies of remote images on this machine's disk: found by the hash of their bytes, or by name and state of the remote.

Any number of processes may share one folder. A copy appears whole or not at all, under its hash, and under its name as
a second link to the same bytes. What was not read for longest goes when the bound is passed. This file knows nothing of
where the bytes came from, and trusts none that it is asked for by hash: a damaged copy is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path

_LOOK_AGAIN = 1 / 16  # of the bound, written by this process, until it counts what there is anew
_WRITING, _ABANDONED_SECONDS = ".writing-", 3600.0  # after which nobody is writing it any more
_FULL = 0.9  # of the bound: what is left after copies have gone, so that not every new one makes another go


class ImageCache:
    """The copies below `folder`, of at most `max_bytes` together (a little more while several processes write)."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._contents = folder / "contents"
        self._names = folder / "names"
        self._max_bytes = max_bytes
        self._unseen = max_bytes  # written since the folder was last counted; it was never

    def by_hash(self, sha256: bytes) -> bytes | None:
        """The bytes with this hash, or None."""
        path = _place(self._contents, sha256.hex())
        content = _read(path)
        if content is not None and hashlib.sha256(content).digest() != sha256:
            path.unlink(missing_ok=True)
            return None
        return content

    def by_name(self, name: str) -> bytes | None:
        """What was put under a name, which says where the bytes are from and in which state of theirs; or None."""
        return _read(_place(self._names, _digest(name)))

    def put(self, content: bytes, name: str | None) -> None:
        """Keep bytes under their hash, and under `name` too.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        path = _place(self._contents, hashlib.sha256(content).hexdigest())
        if not path.exists():
            _write(path, content)
            self._unseen += len(content)
        if name is not None:
            _link(path, _place(self._names, _digest(name)), content)
        if self._unseen > self._max_bytes * _LOOK_AGAIN:
            self._unseen = 0
            self._make_room()

    def _make_room(self) -> None:
        """Remove the copies that were not read for longest, with all their names."""
        paths: defaultdict[int, list[str]] = defaultdict(list)
        copies: dict[int, tuple[int, int, int]] = {}  # inode -> (last read in ns, bytes, inode)
        for folder in (self._contents, self._names):
            for path, status in _files(folder):
                paths[status.st_ino].append(path)
                copies[status.st_ino] = (status.st_mtime_ns, status.st_size, status.st_ino)
        total = sum(num_bytes for _, num_bytes, _ in copies.values())
        if total <= self._max_bytes:
            return
        for _, num_bytes, inode in sorted(copies.values()):
            if total <= self._max_bytes * _FULL:
                return
            for path in paths[inode]:
                with contextlib.suppress(FileNotFoundError):  # another process is at it too
                    os.unlink(path)
            total -= num_bytes


def _place(folder: Path, digest: str) -> Path:
    return folder / digest[:2] / digest


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # another user's folder, or another process has just removed it
        os.utime(path)  # the time of its last reading: what goes first when room is needed
    return content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=_WRITING, dir=path.parent)  # private to this user
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _link(path: Path, name: Path, content: bytes) -> None:
    """The same file under a second name; a second copy where the file system has no links."""
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, name)
    except FileExistsError:
        return
    except OSError:
        _write(name, content)


def _files(folder: Path) -> list[tuple[str, os.stat_result]]:
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(parent, name)
                status = os.stat(path)
                if not name.startswith(_WRITING) or status.st_mtime < time.time() - _ABANDONED_SECONDS:
                    found.append((path, status))
    return found


__all__ = ["ImageCache"]
