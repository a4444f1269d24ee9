"""Is an image turned into the same tensors on both sides? A fingerprint of a processor, and the comparison of two.

Sampler and learner each take it of the processor that they really use, before the first prompt. It covers what decides:
classes, settings, bounds, libraries, and the tensors of a picture drawn here. The processor is handed in; this file
imports no engine and no transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from PIL import Image

from mmr1.errors import ConfigurationError

Fingerprint = Mapping[str, str]

# What resizes, crops and scales. Decoding is Pillow's.
LIBRARIES = ("transformers", "torchvision", "pillow")
# Where a processor came from, not what it does.
_ORIGINS = ("processor_class", "_processor_class", "name_or_path", "_name_or_path", "auto_map")


def fingerprint(processor: Any) -> dict[str, str]:
    """Facts by name, each a short text: two processors with equal facts make the same tensors of an image."""
    images = processor if not hasattr(processor, "image_processor") else processor.image_processor
    settings = {name: value for name, value in images.to_dict().items() if name not in _ORIGINS}
    facts = {
        "processor": type(processor).__name__,
        "image_processor": type(images).__name__,
        "size": str(settings.get("size")),
        "settings": _digest(json.dumps(settings, sort_keys=True, default=str).encode()),
        "pixels": pixel_digest(images),
    }
    return facts | {library: _version(library) for library in LIBRARIES}


def pixel_digest(image_processor: Any) -> str:
    """Of every tensor that the image processor makes of the drawn picture: values, types and shapes."""
    made = image_processor(images=[test_picture()], return_tensors="pt")
    digest = hashlib.sha256()
    for name in sorted(made):
        values = np.ascontiguousarray(made[name])
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def test_picture() -> Image.Image:
    """150 x 103 pixels of slopes, edges and fine stripes: every way of resizing them gives other numbers."""
    y, x = np.mgrid[0:103, 0:150]
    circle = ((x - 60) ** 2 + (y - 50) ** 2 < 900) * 255
    stripes = (x // 2 + y // 3) % 2 * 200
    return Image.fromarray(np.stack([x * 255 // 149, circle, stripes], axis=-1).astype(np.uint8))


def compare(learner: Fingerprint, server: Fingerprint, server_id: str) -> None:
    """Refuse to train on images that the two sides see differently.

    Raises:
        ConfigurationError: names each fact that differs, with both values.
    """
    different = [name for name in sorted({*learner, *server}) if learner.get(name) != server.get(name)]
    if different:
        facts = "; ".join(f"{name} {server.get(name)} there, {learner.get(name)} here" for name in different)
        raise ConfigurationError(
            f"{server_id} and the learner prepare images differently: {facts}; give both the same model folder, "
            "min_pixels, max_pixels and versions of these libraries"
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _version(library: str) -> str:
    """Without the build's suffix: +cpu and +cu130 are one version."""
    try:
        return version(library).partition("+")[0]
    except PackageNotFoundError:
        return "none"


__all__ = ["LIBRARIES", "Fingerprint", "compare", "fingerprint", "pixel_digest", "test_picture"]
