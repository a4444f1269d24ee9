"""The images that annotations are about: whether each is there, its size, and whether it is the one that was annotated.

Headers are read and no pixels; `mmr1 data validate` decodes. This file knows no format of annotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmr1.convert.annotations import BadAnnotation, LeftOut, is_unicode, member
from mmr1.errors import ConfigurationError
from mmr1.image_files import ImageError, MissingImageError, UnreachableImageError
from mmr1.images import ImageStore
from mmr1.remote_images import RemoteRoot
from mmr1.resizing import Size

MISSING = "the image is not there"


class Pictures:
    """The images below a folder or a URL."""

    def __init__(self, root: Path | RemoteRoot) -> None:
        self.root = root
        self._store = ImageStore(root)
        self._by_name: dict[str, str] | None = None

    def relative(self, image: str) -> str:
        """An image's path relative to the root, of one that has a size."""
        return self._store.relative(image)

    def size(self, image: str, key: str) -> Size:
        """Width and height of an image, upright.

        Raises:
            LeftOut: it is not there.
            BadAnnotation: it is not below the root, or no image.
            UnreachableImageError: where images are kept does not answer.
        """
        try:
            return self._store.size(image)
        except MissingImageError:
            raise LeftOut(MISSING) from None
        except UnreachableImageError:
            raise  # a dataset that lacks what was away for a moment
        except ImageError as error:
            raise BadAnnotation(key, str(error)) from None

    def annotated_size(self, row: Mapping[str, Any], image: str, key: str) -> Size:
        """The same, held against the row's `width` and `height` where it has them.

        Raises:
            LeftOut: as `size`.
            BadAnnotation: as `size`, or the annotations were made on an image of another size, so boxes are off.
        """
        size = self.size(image, key)
        for name, real in zip(("width", "height"), size, strict=True):
            if name in row and (said := member(row, name, key, int, "a number of pixels")) != real:
                raise BadAnnotation(
                    f"{key}.{name}", f"is {said}, and the image has {size[0]} x {size[1]} pixels as it is shown"
                )
        return size

    def named(self, names: tuple[str, ...], sha256: str | None, key: str) -> str:
        """The image that has one of these names, with any ending or none, and these bytes.

        Raises:
            LeftOut: there is none.
            BadAnnotation: its bytes are others than those that were annotated, or no row can hold its name.
            ConfigurationError: the images are below a URL, which cannot be listed.
        """
        found = next((path for name in names if (path := self._index().get(name))), None)
        if found is None:
            raise LeftOut(MISSING)
        if not is_unicode(found):
            raise BadAnnotation(key, f"{found!r} has a name that is not UTF-8; rename it")
        if sha256 is not None:
            try:
                really = self._store.ref(found).sha256.hex()
            except ImageError as error:
                raise BadAnnotation(key, str(error)) from None
            if really != sha256.lower():
                raise BadAnnotation(key, f"{found} is not the image that was annotated: its SHA-256 is {really}")
        return found

    def _index(self) -> dict[str, str]:
        """Files of a local folder by their name and by their name without its ending."""
        if self._by_name is None:
            self._by_name = {}
            if not isinstance(self.root, Path):
                raise ConfigurationError(f"--images {self.root}: files are looked for by name; give a folder of them")
            for path in sorted(self.root.rglob("*")):
                if path.is_file():
                    relative = path.relative_to(self.root).as_posix()
                    self._by_name.setdefault(path.name, relative)
                    self._by_name.setdefault(path.stem, relative)
        return self._by_name


__all__ = ["MISSING", "Pictures"]
