"""Images that a dataset holds as bytes, written once below the image root and then named as any other image.

A file is named by the SHA-256 of its content, so several processes, runs and datasets may write at once: what is there
already is the same. This file knows nothing of rows.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from pathlib import Path

from PIL import Image

from mmr1.errors import ConfigurationError
from mmr1.images import FORMATS, ImageError
from mmr1.remote_images import RemoteRoot

FOLDER = "embedded_images"


class EmbeddedImages:
    """The embedded images below one image root."""

    def __init__(self, root: Path | RemoteRoot) -> None:
        self._root = root if isinstance(root, RemoteRoot) else Path(os.path.realpath(root))

    def require_folder(self) -> Path:
        """Raises ConfigurationError: the root is a URL."""
        if isinstance(self._root, RemoteRoot):
            raise ConfigurationError(
                f"image root {self._root}: the dataset's embedded images are written to a folder; set image_root to one"
            )
        return self._root

    def name(self, content: bytes) -> str:
        """Write an image unless it is there, and return its path relative to the root.

        Raises:
            ImageError: the bytes do not begin as an image does.
            ConfigurationError: the root cannot be written to, or is a URL.
        """
        root = self.require_folder()
        digest = hashlib.sha256(content).hexdigest()
        relative = Path(FOLDER) / digest[:2] / f"{digest}.{_suffix(content)}"
        target = root / relative
        try:
            if not target.exists() or target.stat().st_size != len(content):
                target.parent.mkdir(parents=True, exist_ok=True)
                aside = target.with_name(f".{uuid.uuid4().hex}")
                aside.write_bytes(content)
                aside.replace(target)
        except OSError as error:
            raise ConfigurationError(
                f"image root {self._root}: the dataset's embedded images are written there once, and it cannot be "
                f"written to ({error.strerror}); set image_root to a folder that can"
            ) from None
        return relative.as_posix()


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return (image.format or "image").lower()
    except Image.DecompressionBombError as error:
        raise ImageError("(embedded)", str(error)) from None
    except Exception:  # decoders raise whatever their format library does
        raise ImageError("(embedded)", f"is not one of {', '.join(FORMATS)}") from None


__all__ = ["FOLDER", "EmbeddedImages"]
