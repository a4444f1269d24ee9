"""Content-addressed access to the image files below one folder.

A path from a dataset or from the network is only ever opened through an ImageStore: what lies outside the root, is not
a plain file, has changed since it was named, or would decode to more pixels than the bound is refused with a reason.
This file knows nothing of datasets, prompts, resizing or tensors, and it reads local folders only.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from mmr1.records import ImageRef

# Pillow opens EPS, PDF and others by running programs or reading far more than pixels; these are plain decoders.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 2**26  # 67 million, 200 MB as RGB
MAX_FILE_BYTES = 2**28
# A path that has become a link or a pipe meanwhile is neither followed nor waited for.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height

_T = TypeVar("_T")


class ImageError(Exception):
    """An image that cannot be used. One line: the path as it was given, and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"image {path}: {reason}")
        self.path = path
        self.reason = reason


class ImageStore:
    """The images below `root`, a local folder that may itself be a symbolic link."""

    def __init__(self, root: Path | str, *, max_pixels: int = MAX_PIXELS) -> None:
        self.root = Path(os.path.realpath(root))
        self.max_pixels = max_pixels

    def ref(self, path: str | Path) -> ImageRef:
        """Name a file by its path relative to the root and the SHA-256 of its bytes.

        Raises:
            ImageError: the file is missing, unreadable, too large or outside the root.
        """
        relative = self.relative(path)
        return ImageRef(relative, hashlib.sha256(self._read(relative)).digest())

    def open(self, ref: ImageRef) -> Image.Image:
        """Decode to RGB: upright by its EXIF orientation, transparency over white, 16 bits scaled to 8, first frame.

        Raises:
            ImageError: as `ref` does, or the bytes no longer have the hash in `ref`, or they are not an image.
        """
        content = self._read(ref.path)
        if hashlib.sha256(content).digest() != ref.sha256:
            raise ImageError(ref.path, "its content changed since it was named; restore the file or start a new run")
        return self._decode(ref.path, content)

    def check(self, path: str | Path) -> tuple[int, int]:
        """Decode a file completely and return its (width, height) in pixels as `open` would give it.

        Raises:
            ImageError: as `open` does.
        """
        return self._decode(str(path), self._read(str(path))).size

    def check_content(self, name: str, content: bytes) -> tuple[int, int]:
        """The same of an image that is no file; `name` is what an error calls it."""
        return self._decode(name, content).size

    def size(self, path: str | Path) -> tuple[int, int]:
        """(width, height) as `open` would give them, from the file's header alone.

        Raises:
            ImageError: the file is missing, outside the root, or without a header.
        """
        try:
            with self._opened(str(path)) as file, Image.open(file, formats=FORMATS) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
                return (image.height, image.width) if turned else (image.width, image.height)
        except (OSError, Image.DecompressionBombError) as error:
            raise ImageError(str(path), f"has no readable header ({error})") from None

    def num_pixels(self, path: str | Path) -> int:
        """Width times height, from the file's header alone: for ordering files that `check` has passed.

        Raises:
            ImageError: the file is missing, outside the root, or without a header.
        """
        try:
            with self._opened(str(path)) as file, Image.open(file, formats=FORMATS) as image:
                return image.width * image.height
        except (OSError, Image.DecompressionBombError) as error:
            raise ImageError(str(path), f"has no readable header ({error})") from None

    def relative(self, path: str | Path) -> str:
        """`path`, absolute or relative to the root, as a relative path with forward slashes. Opens nothing.

        Raises:
            ImageError: it leaves the root by its own wording ("..", another absolute folder).
        """
        if "\0" in str(path):
            raise ImageError(str(path).replace("\0", "\\0"), "is not a path (NUL byte)")
        joined = os.path.normpath(self.root / path)
        if not Path(joined).is_relative_to(self.root):
            # An absolute path may reach the root through a link; then its real location decides.
            joined = os.path.realpath(joined)
        self._require_inside(str(path), Path(joined))
        return Path(joined).relative_to(self.root).as_posix()

    def _require_inside(self, path: str, location: Path) -> None:
        if not location.is_relative_to(self.root):
            raise ImageError(path, f"lies outside the image root {self.root}; move it below, or set image_root")

    def _read(self, path: str) -> bytes:
        with self._opened(path) as file:
            content = self._named(path, lambda: file.read(MAX_FILE_BYTES + 1))
        _require_size(path, len(content))  # it may have grown
        return content

    def _opened(self, path: str) -> BinaryIO:
        """A regular file within bounds. What is checked is what was opened: between two looks a path may change."""
        location = self._named(path, lambda: Path(os.path.realpath(self.root / path)))
        self._require_inside(path, location)
        _require_regular(path, self._named(path, location.stat))  # opening a device may already do something
        file = self._named(path, lambda: os.fdopen(os.open(location, _FLAGS), "rb"))
        try:
            status = os.fstat(file.fileno())
            _require_regular(path, status)
            _require_size(path, status.st_size)
            self._require_inside(path, Path(os.readlink(f"/proc/self/fd/{file.fileno()}")))
        except BaseException:
            file.close()
            raise
        return file

    def _named(self, path: str, step: Callable[[], _T]) -> _T:
        """What the system says of a file, with its path."""
        try:
            return step()
        except FileNotFoundError:
            raise ImageError(path, f"does not exist below {self.root}") from None
        except OSError as error:
            raise ImageError(path, f"cannot be read ({error.strerror})") from None
        except ValueError as error:  # a NUL byte, from the network
            raise ImageError(path.replace("\0", "\\0"), f"is not a path ({error})") from None

    def _decode(self, path: str, content: bytes) -> Image.Image:
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if width * height > self.max_pixels:
                    raise ImageError(path, f"has {width} x {height} pixels, above the bound of {self.max_pixels}")
                _load_whole(image)
                return _to_rgb(ImageOps.exif_transpose(image))
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(path, f"is not one of {', '.join(FORMATS)}") from None
        except _TruncatedError:
            raise ImageError(path, f"is cut short ({len(content)} bytes); restore the complete file") from None
        except Image.DecompressionBombError:
            raise ImageError(path, f"has more pixels than the bound of {self.max_pixels}") from None
        except (
            Exception
        ) as error:  # decoders raise whatever their format library does; the file is at fault in each case
            raise ImageError(path, f"cannot be decoded ({type(error).__name__}: {error})") from error


def _require_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
        raise ImageError(path, "is not a file")


def _require_size(path: str, num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise ImageError(path, f"has {num_bytes} bytes, above the bound of {MAX_FILE_BYTES}")


class _TruncatedError(Exception):
    """The file ends before its pixels do."""


def _load_whole(image: Image.Image) -> None:
    """Decode all pixels. Libraries switch Pillow's leniency on for everybody, and a lenient rest is gray."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        image.load()
    except (OSError, SyntaxError) as error:
        # Pillow tells them apart by words only: "image file is truncated", "broken PNG file", "Truncated File Read".
        if "truncated" in str(error).lower():
            raise _TruncatedError from error
        raise
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _deep_gray(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    return image.convert("RGB")


def _deep_gray(image: Image.Image) -> Image.Image:
    """16-bit gray to 8 bits. Pillow's own conversion clips at 255, which turns nearly every pixel white."""
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min(initial=0) < 0 or pixels.max(initial=0) > 0xFFFF:
        raise ValueError(f"mode {image.mode} has no fixed range; save it with 8 or 16 bits a channel")
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))


__all__ = ["FORMATS", "MAX_PIXELS", "ImageError", "ImageStore"]
