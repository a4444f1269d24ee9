"""The size at which a Qwen-VL model sees an image: what its processor does, from the settings in the model's folder.

Only the sizes are computed, by the formula that transformers' Qwen2VLImageProcessor resizes by (`smart_resize`), so no
tensor library is needed; tests hold it to the real processor. Other families' processors are not known here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmr1.errors import ConfigurationError

Size = tuple[int, int]  # width and height in pixels

MAX_ASPECT_RATIO = 200
# Of transformers' Qwen2VLImageProcessor, where the folder does not say.
_DEFAULTS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280, "patch_size": 14, "merge_size": 2}
# One bound, by the names that files have for it: in the file itself, then within its `size`.
_IN_SIZE = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


@dataclass(frozen=True, slots=True)
class Resize:
    """A processor's settings. Sides become multiples of `factor`, the area stays between the two numbers of pixels."""

    factor: int = 28
    min_pixels: int = _DEFAULTS["min_pixels"]
    max_pixels: int = _DEFAULTS["max_pixels"]
    enabled: bool = True  # the folder's do_resize

    @classmethod
    def of_model(cls, folder: Path, bounds: Mapping[str, int]) -> Resize:
        """What the processor in a model's folder does under the run's `bounds` (min_pixels, max_pixels).

        Raises:
            ConfigurationError: the folder's settings cannot be read, or name no bounds that the processor understands.
        """
        path, settings = _settings(folder)
        pixels = {name: _bound(path, settings, bounds, name) for name in _IN_SIZE}
        factor = _positive(path, settings, "patch_size") * _positive(path, settings, "merge_size")
        return cls(factor, pixels["min_pixels"], pixels["max_pixels"], bool(settings.get("do_resize", True)))

    def __call__(self, size: Size) -> Size:
        """The width and height that the model sees of an image of `size`.

        Raises:
            ValueError: the processor refuses the image: one side is more than 200 times the other.
        """
        if not self.enabled:
            return size
        width, height = size
        if max(size) > MAX_ASPECT_RATIO * min(size):
            raise ValueError(f"has {width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")
        nearest = round(width / self.factor) * self.factor, round(height / self.factor) * self.factor
        if nearest[0] * nearest[1] > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            return self._floor(width / shrink), self._floor(height / shrink)
        if nearest[0] * nearest[1] < self.min_pixels:
            enlarge = math.sqrt(self.min_pixels / (width * height))
            return self._ceil(width * enlarge), self._ceil(height * enlarge)
        return nearest

    def _floor(self, side: float) -> int:
        return max(self.factor, math.floor(side / self.factor) * self.factor)

    def _ceil(self, side: float) -> int:
        return math.ceil(side / self.factor) * self.factor


def _settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Where transformers looks, in its order: `image_processor` in the processor's file, then the older file."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            found = document if name == "preprocessor_config.json" else document.get("image_processor")
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"{path} cannot be read ({error}); repair the model's folder") from None
        if isinstance(found, dict):
            return path, found
    raise ConfigurationError(f"model {folder} has no preprocessor_config.json; download it completely")


def _bound(path: Path, settings: Mapping[str, Any], bounds: Mapping[str, int], name: str) -> int:
    """The run's bound, else the file's, else what `size` says, else the class's own."""
    if name in bounds:
        return bounds[name]
    if settings.get(name) is not None:
        return _positive(path, settings, name)
    size = settings.get("size")
    if size is None:
        return _DEFAULTS[name]
    edge = size.get(_IN_SIZE[name]) if isinstance(size, dict) else None
    if isinstance(edge, bool) or not isinstance(edge, int) or edge <= 0:
        raise ConfigurationError(
            f"{path}: its size has no {_IN_SIZE[name]}, without which the processor resizes nothing; give it there, "
            f"or set {name} in the run"
        )
    return edge


def _positive(path: Path, settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name, _DEFAULTS[name])
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigurationError(f"{path}: {name} is {value!r}, not a positive number; repair the model's folder")
    return value


__all__ = ["MAX_ASPECT_RATIO", "Resize", "Size"]
