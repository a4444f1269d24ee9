"""The bytes of image files below a URL (s3://, https://, any that fsspec opens), fetched once and kept on this disk.

Paths are as strict as below a local folder: no name leads out of the root, only files are read, and no more of one than
the bound. A failure of the network is tried again for some seconds before it is told. Credentials are the file system's
own affair (AWS_* in the environment, fsspec's configuration). This file knows nothing of pixels.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote, urlsplit

from mmr1.credentials import holds_login, without_secrets
from mmr1.errors import ConfigurationError
from mmr1.image_cache import ImageCache
from mmr1.image_files import (
    MAX_FILE_BYTES,
    ImageError,
    MissingImageError,
    UnreachableImageError,
    not_below,
    require_size,
)

# What a file system may say of a file that changes when its content does. Names and times of access are not among it.
_STATE = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "VersionId", "generation"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created"),
)
_WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try
_CHUNK_BYTES = 2**20
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
# What another try cannot change. NotImplementedError: the file system cannot read so.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ValueError)

# Of the cache: what no waiting mends, and what a person can do about the rest.
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "let this user write there"),
}

_GONE = (404, 410)  # of a web server's answers
_LATER = (408, 425, 429)  # and all from 500: it may answer otherwise soon

_T = TypeVar("_T")


def default_cache() -> Path:
    """Where copies are kept unless a run says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmr1" / "images"


@dataclass(frozen=True, slots=True)
class RemoteRoot:
    """A URL below which images are, and where and how many of them are kept on this machine."""

    url: str
    cache: Path = field(default_factory=default_cache)
    cache_bytes: int = 10 * 2**30

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a URL that is no root, or that holds a user or a password; it shows neither."""
        shown = f"image_root {self.url.partition('://')[0]}://..."
        if holds_login(self.url):
            raise ConfigurationError(
                f"{shown}: a user or a password in it would be written into the run's files; give it in fsspec's "
                "configuration or the environment"
            )
        if any(mark in self.url for mark in ("::", "?", "#")):
            raise ConfigurationError(f"{shown}: give one plain URL, without '::', '?' and '#'")

    def __str__(self) -> str:
        return self.url

    def file_system(self) -> tuple[Any, str]:
        """fsspec's file system, and the root as it calls it. Opens no connection.

        Raises:
            ConfigurationError: there is none for the scheme, or its package is missing.
        """
        import fsspec  # slow, and of no use to a run with local images

        scheme = urlsplit(self.url).scheme
        try:
            file_system, root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            package = _PACKAGES.get(scheme)
            remedy = f"pip install {package}" if package else " ".join(str(error).split())
            raise ConfigurationError(f"image_root {self.url}: a package is missing; {remedy}") from None
        except ValueError as error:
            raise ConfigurationError(f"image_root {self.url}: {' '.join(str(error).split())}") from None
        return file_system, str(root)


def local_or_remote(root: Path | str | RemoteRoot) -> Path | RemoteRoot:
    """What an image root stands for. A file:// URL is the folder that it names.

    Raises:
        ConfigurationError: it names another machine, or as RemoteRoot.
    """
    if isinstance(root, str) and root.startswith("file://"):
        parts = urlsplit(root)
        if parts.netloc not in ("", "localhost"):
            raise ConfigurationError(
                "image_root file://...: a host stands after file://; a folder of this machine is file:///FOLDER, with "
                "three slashes, or its path"
            )
        return Path(unquote(parts.path))
    if isinstance(root, str) and "://" in root:
        return RemoteRoot(root)
    return Path(root) if isinstance(root, str) else root


def checked_root(value: Any) -> Any:
    """An `image_root` as it is written: a folder becomes a Path, a URL stays a text.

    Raises:
        ConfigurationError: as RemoteRoot.
    """
    if not isinstance(value, str):
        return value
    found = local_or_remote(value)
    return found.url if isinstance(found, RemoteRoot) else found


class RemoteImages:
    """The files below a RemoteRoot."""

    def __init__(self, root: RemoteRoot) -> None:
        self.root = root
        self._file_system, self._base = root.file_system()
        self._is_http = urlsplit(root.url).scheme in ("http", "https")
        self._cache = ImageCache(root.cache, root.cache_bytes)

    def relative(self, path: str | Path) -> str:
        """A path below the root, normalised. Asks nobody.

        Raises:
            ImageError: it is absolute, or leaves the root by its own wording.
        """
        text = str(path)
        if "\0" in text:
            raise ImageError(text.replace("\0", "\\0"), "is not a path (NUL byte)")
        if "://" in text or "::" in text:
            raise not_below(text, self.root)
        normal = posixpath.normpath(text)
        if normal == ".." or normal.startswith(("/", "../")):
            raise ImageError(text, f"lies outside the image root {self.root}; move it below, or set image_root")
        return normal

    def read(self, path: str, sha256: bytes | None = None) -> bytes:
        """A file's bytes: the copy with this hash, or the copy of the remote's state, or fetched and kept.

        Raises:
            ImageError: it is missing, unreadable, too large, no file, or outside the root.
            UnreachableImageError: the server does not answer, or says that it cannot now; or the cache takes nothing.
            ConfigurationError: the cache is no folder.
        """
        relative = self.relative(path)
        if sha256 is not None and (content := self._cached(path, lambda: self._cache.by_hash(sha256))) is not None:
            return content
        location = self._location(relative)
        info = self._named(path, lambda: self._file_system.info(location))
        if info.get("type") != "file":
            raise ImageError(path, "is not a file")
        require_size(path, info.get("size") or 0)
        state = {name: str(info[name]) for name in _STATE if info.get(name)}
        # A server that says nothing of a file's state is asked for the file each time it is named.
        name = f"{self.root.url}\n{relative}\n{info.get('size')}\n{sorted(state.items())}" if state else None
        if name is not None and (content := self._cached(path, lambda: self._cache.by_name(name))) is not None:
            return content
        content = self._named(path, lambda: self._fetch(location))
        require_size(path, len(content))
        self._cached(path, lambda: self._cache.put(content, name))
        return content

    def open(self, path: str) -> BinaryIO:
        """The same bytes as a file."""
        return io.BytesIO(self.read(path))

    def _location(self, relative: str) -> str:
        """As the file system calls it. In a web address nothing of a name may have a meaning of its own (? # %2e)."""
        return f"{self._base.rstrip('/')}/{quote(relative) if self._is_http else relative}"

    def _fetch(self, location: str) -> bytes:
        """Up to one byte more than the bound: a server may send more than it has said."""
        parts, left = [], MAX_FILE_BYTES + 1
        # Streamed from a web server: not all of them can send parts of a file.
        with self._file_system.open(location, "rb", **({"block_size": 0} if self._is_http else {})) as file:
            while left and (part := file.read(min(_CHUNK_BYTES, left))):
                parts.append(part)
                left -= len(part)
        return b"".join(parts)

    def _cached(self, path: str, step: Callable[[], _T]) -> _T:
        """A step in the cache. What fails there is this machine's fault and never the image's: most of it clears."""
        try:
            return step()
        except OSError as error:
            cache, why = self.root.cache, error.strerror or type(error).__name__
            if error.errno in _NO_FOLDER:
                raise ConfigurationError(
                    f"image_cache {cache}: images cannot be kept there ({why}); set image_cache to another folder"
                ) from None
            remedy = _REMEDIES.get(error.errno or 0, "see to that disk")
            raise UnreachableImageError(
                path, f"cannot be kept below {cache} ({why}); {remedy}, or set image_cache to another folder"
            ) from None

    def _named(self, path: str, step: Callable[[], _T]) -> _T:
        """What the file system says of a file, with its path; tried again where that may help."""
        for wait in (*_WAITS, None):
            try:
                return step()
            except Exception as error:  # each file system has errors of its own beside OSError
                if _is_missing(error, self._is_http):
                    raise MissingImageError(path, self.root) from None
                if wait is not None and not _is_final(error):
                    time.sleep(wait)
                    continue
                said = without_secrets(str(error.__cause__ or error))  # of a redirect's address, say
                reason = " ".join(said.split())[:200] or type(error).__name__
                kind = ImageError if _is_final(error) else UnreachableImageError
                raise kind(path, f"cannot be read from {self.root} ({reason})") from None
        raise AssertionError("the last try returns or raises")


def _status(error: Exception) -> int | None:
    """What a web server has answered."""
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)
    return status if isinstance(status, int) else None


def _is_missing(error: Exception, is_http: bool) -> bool:
    """fsspec says of any answer of a web server but 200, and of none at all, that the file does not exist."""
    status = _status(error)
    if is_http and (status is not None or error.__cause__ is not None):
        return status in _GONE
    return isinstance(error, FileNotFoundError)


def _is_final(error: Exception) -> bool:
    if (status := _status(error)) is not None:
        return status < 500 and status not in _LATER
    if isinstance(error, FileNotFoundError):
        return isinstance(error.__cause__, _FINAL)
    return isinstance(error, _FINAL)


__all__ = ["RemoteImages", "RemoteRoot", "checked_root", "default_cache", "local_or_remote"]
