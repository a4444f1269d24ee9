"""Copies of remote images on this machine's disk: found by the hash of their bytes, or by name and state of the remote.

Any number of processes may share one folder. A copy appears whole or not at all, under its hash; a name is a small file
that holds the hash. What was not read for longest goes when the bound is passed. This file knows nothing of where the
bytes came from, and trusts none on the disk: a damaged copy is as good as none, whichever way it is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from pathlib import Path

_LOOK_AGAIN = 1 / 16  # of the bound, written by this process, until it counts what there is anew
_WRITING, _ABANDONED_SECONDS = ".writing-", 3600.0  # after which nobody is writing it any more
_HASH_CHARS = 64  # of SHA-256, in hex
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
        sha256 = _hash_in(_place(self._names, _digest(name)))
        return None if sha256 is None else self.by_hash(sha256)

    def put(self, content: bytes, name: str | None) -> None:
        """Keep bytes under their hash, and under `name` too.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        path = _place(self._contents, sha256)
        if not path.exists():
            self._write_copy(path, content)
            self._unseen += len(content)
        if name is not None:
            _write(_place(self._names, _digest(name)), sha256.encode())
        if self._unseen > self._max_bytes * _LOOK_AGAIN:
            self._unseen = 0
            self._make_room()

    def _write_copy(self, path: Path, content: bytes) -> None:
        try:
            _write(path, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._make_room()  # of ours, as far as there is more than the bound, which may be smaller than it was
            _write(path, content)

    def _make_room(self) -> None:
        """Remove the copies that were not read for longest, and the names that none is left of."""
        copies = sorted((status.st_mtime_ns, status.st_size, path) for path, status in _files(self._contents))
        total = sum(num_bytes for _, num_bytes, _ in copies)
        if total <= self._max_bytes:
            return
        for _, num_bytes, path in copies:
            if total <= self._max_bytes * _FULL:
                break
            _remove(path)
            total -= num_bytes
        for path, _ in _files(self._names):
            sha256 = None if os.path.basename(path).startswith(_WRITING) else _hash_in(Path(path))
            if sha256 is None or not _place(self._contents, sha256.hex()).exists():
                _remove(path)


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


def _hash_in(name: Path) -> bytes | None:
    """The hash that a name's file holds; None where there is no file, or something else in it."""
    try:
        with name.open("rb") as file:
            found = file.read(_HASH_CHARS + 1)
        return bytes.fromhex(found.decode("ascii")) if len(found) == _HASH_CHARS else None
    except (FileNotFoundError, ValueError):
        return None


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process is at it too
        os.unlink(path)


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
