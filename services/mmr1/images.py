"""Content-addressed access to the images below one root: a folder, or any URL that fsspec opens.

A path from a dataset or from the network is only ever opened through an ImageStore: what lies outside the root, is not
a plain file, has changed since it was named, or would decode to more pixels than the bound is refused with a reason.
How bytes are got is `image_files` and `remote_images`; this file makes hashes and pixels of them, and knows nothing of
datasets, prompts, resizing or tensors.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mmr1.image_files import ImageError, LocalImages, UnreachableImageError
from mmr1.records import ImageRef
from mmr1.remote_images import RemoteImages, RemoteRoot, local_or_remote

# Pillow opens EPS, PDF and others by running programs or reading far more than pixels; these are plain decoders.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 2**26  # 67 million, 200 MB as RGB
_ORIENTATION, _ON_ITS_SIDE = 0x0112, range(5, 9)  # of EXIF: turned by 90 degrees either way


class ImageStore:
    """The images below `root`: a local folder, which may itself be a symbolic link, or a URL.

    Raises:
        ConfigurationError: nothing here opens such a URL.
    """

    def __init__(self, root: Path | str | RemoteRoot, *, max_pixels: int = MAX_PIXELS) -> None:
        found = local_or_remote(root)
        self._files = RemoteImages(found) if isinstance(found, RemoteRoot) else LocalImages(found)
        self.root = self._files.root
        self.max_pixels = max_pixels

    def ref(self, path: str | Path) -> ImageRef:
        """Name a file by its path relative to the root and the SHA-256 of its bytes.

        Raises:
            ImageError: the file is missing, unreadable, too large or outside the root.
        """
        relative = self.relative(path)
        return ImageRef(relative, hashlib.sha256(self._files.read(relative)).digest())

    def open(self, ref: ImageRef) -> Image.Image:
        """Decode to RGB: upright by its EXIF orientation, transparency over white, 16 bits scaled to 8, first frame.

        Raises:
            ImageError: as `ref` does, or the bytes no longer have the hash in `ref`, or they are not an image.
        """
        content = self._files.read(ref.path, ref.sha256)
        if hashlib.sha256(content).digest() != ref.sha256:
            raise ImageError(ref.path, "its content changed since it was named; restore the file or start a new run")
        return self._decode(ref.path, content)

    def check(self, path: str | Path) -> tuple[int, int]:
        """Decode a file completely and return its (width, height) in pixels as `open` would give it.

        Raises:
            ImageError: as `open` does.
        """
        return self._decode(str(path), self._files.read(str(path))).size

    def check_content(self, name: str, content: bytes) -> tuple[int, int]:
        """The same of an image that is no file; `name` is what an error calls it."""
        return self._decode(name, content).size

    def size(self, path: str | Path) -> tuple[int, int]:
        """(width, height) in pixels as `open` would give it, from the file's header alone where that says it.

        Raises:
            ImageError: the file is missing or outside the root, or no image by its header.
        """
        try:
            with self._files.open(str(path)) as file, Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
                is_tiff = image.format == "TIFF"  # which Pillow itself turns, when it decodes or before
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return self.check(path)  # which says what is wrong
        if turned and is_tiff:
            return self.check(path)
        return (height, width) if turned else (width, height)

    def num_pixels(self, path: str | Path) -> int:
        """Width times height, from the file's header alone: for ordering files that `check` has passed.

        Raises:
            ImageError: as `size`.
        """
        width, height = self.size(path)
        return width * height

    def relative(self, path: str | Path) -> str:
        """`path`, as a dataset gives it, as a path relative to the root with forward slashes. Opens nothing.

        Raises:
            ImageError: it leaves the root by its own wording ("..", another absolute folder).
        """
        return self._files.relative(path)

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


__all__ = ["FORMATS", "MAX_PIXELS", "ImageError", "ImageStore", "UnreachableImageError"]
