"""The bytes of the image files below a local folder, and the ways in which a file is refused before it is decoded.

What is checked is what is read: a path that lies outside the root, is not a plain file or is too large is refused, also
when it becomes so between two looks. This file knows nothing of pixels, hashes or datasets, and no other machine.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from mmr1.credentials import without_secrets
from mmr1.errors import AwayError

MAX_FILE_BYTES = 2**28
# A path that has become a link or a pipe meanwhile is neither followed nor waited for.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

# What passes: at another moment, or on another server, the same file may be read.
_OF_THE_MACHINE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OF_A_MOUNT = (errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN)

_T = TypeVar("_T")


class ImageError(Exception):
    """An image that cannot be used. One line: the path as it was given, and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"image {without_secrets(path)}: {reason}")
        self.path = path
        self.reason = reason


class MissingImageError(ImageError):
    """There is no file of that name."""

    def __init__(self, path: str, root: object) -> None:
        super().__init__(path, f"does not exist below {root}")


class UnreachableImageError(ImageError, AwayError):
    """Where it is kept, or its copy would be, cannot be used now. That may change: nothing is said of the image."""


class LocalImages:
    """The files below `root`, a local folder that may itself be a symbolic link."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(os.path.realpath(root))

    def relative(self, path: str | Path) -> str:
        """`path`, absolute or relative to the root, as a relative path with forward slashes. Opens nothing.

        Raises:
            ImageError: it leaves the root by its own wording ("..", another absolute folder).
        """
        if "\0" in str(path):
            raise ImageError(str(path).replace("\0", "\\0"), "is not a path (NUL byte)")
        if "://" in str(path):
            raise not_below(str(path), self.root)
        joined = os.path.normpath(self.root / path)
        if not Path(joined).is_relative_to(self.root):
            # An absolute path may reach the root through a link; then its real location decides.
            joined = os.path.realpath(joined)
        self._require_inside(str(path), Path(joined))
        return Path(joined).relative_to(self.root).as_posix()

    def read(self, path: str, sha256: bytes | None = None) -> bytes:
        """A file's bytes. `sha256`, which it was named by, does not matter: the folder is the only place to look.

        Raises:
            ImageError: it is missing, unreadable, too large, no plain file, or outside the root.
            UnreachableImageError: the machine or the folder's server could not read it this time.
        """
        with self.open(path) as file:
            content = self._named(path, lambda: file.read(MAX_FILE_BYTES + 1))
        require_size(path, len(content))  # it may have grown
        return content

    def open(self, path: str) -> BinaryIO:
        """A regular file within bounds. What is checked is what was opened: between two looks a path may change.

        Raises:
            ImageError: as `read`.
        """
        location = self._named(path, lambda: Path(os.path.realpath(self.root / path)))
        self._require_inside(path, location)
        _require_regular(path, self._named(path, location.stat))  # opening a device may already do something
        file = self._named(path, lambda: os.fdopen(os.open(location, _FLAGS), "rb"))
        try:
            status = os.fstat(file.fileno())
            _require_regular(path, status)
            require_size(path, status.st_size)
            self._require_inside(path, Path(os.readlink(f"/proc/self/fd/{file.fileno()}")))
        except BaseException:
            file.close()
            raise
        return file

    def _require_inside(self, path: str, location: Path) -> None:
        if not location.is_relative_to(self.root):
            raise ImageError(path, f"lies outside the image root {self.root}; move it below, or set image_root")

    def _named(self, path: str, step: Callable[[], _T]) -> _T:
        """What the system says of a file, with its path."""
        try:
            return step()
        except FileNotFoundError:
            raise MissingImageError(path, self.root) from None
        except OSError as error:
            kind = UnreachableImageError if error.errno in (*_OF_THE_MACHINE, *_OF_A_MOUNT) else ImageError
            raise kind(path, f"cannot be read ({error.strerror})") from None
        except ValueError as error:  # a NUL byte, from the network
            raise ImageError(path.replace("\0", "\\0"), f"is not a path ({error})") from None


def not_below(path: str, root: object) -> ImageError:
    """What is wrong with a URL where a path is wanted."""
    return ImageError(path, f"is not a path below the image root {root}; write it relative to that")


def require_size(path: str, num_bytes: int) -> None:
    """Raises ImageError for a file above the bound."""
    if num_bytes > MAX_FILE_BYTES:
        raise ImageError(path, f"has {num_bytes} bytes, above the bound of {MAX_FILE_BYTES}")


def _require_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
        raise ImageError(path, "is not a file")


__all__ = [
    "MAX_FILE_BYTES",
    "ImageError",
    "LocalImages",
    "MissingImageError",
    "UnreachableImageError",
    "not_below",
    "require_size",
]
