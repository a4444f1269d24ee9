"""The 1,797 handwritten digits that scikit-learn ships, and which of them may be trained on.

This file knows nothing of canvases or problems.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmr1.errors import ConfigurationError

# Fixed, whatever the seed: a scan that any training split may show is never in any held-out split.
NUM_TRAIN_SCANS = 1400
DARKEST = 16  # scikit-learn's scans run from 0 to 16


@dataclass(frozen=True, slots=True)
class Scans:
    """`images` [N, 8, 8] uint8, ink from 0 to 255; `labels` [N] uint8; `ids` [N], places in scikit-learn's order."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def training(self) -> Scans:
        return self._select(self.ids < NUM_TRAIN_SCANS)

    def held_out(self) -> Scans:
        return self._select(self.ids >= NUM_TRAIN_SCANS)

    def of(self, labels: npt.ArrayLike) -> Scans:
        """The scans that show one of these digits."""
        return self._select(np.isin(self.labels, labels))

    def _select(self, mask: npt.NDArray[np.bool_]) -> Scans:
        return Scans(self.images[mask], self.labels[mask], self.ids[mask])


def load_scans() -> Scans:
    """The scans from scikit-learn.

    Raises:
        ConfigurationError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigurationError(
            "scikit-learn, which ships the handwritten digits, is not installed; pip install 'mmr1[digits]'"
        ) from None
    digits = load_digits()
    images = np.rint(digits.images * (255 / DARKEST)).astype(np.uint8)
    return Scans(images, digits.target.astype(np.uint8), np.arange(len(digits.target)))


def save_scans(scans: Scans, path: Path) -> None:
    """Write the scans beside a dataset, so that a machine without scikit-learn can compose more of the same."""
    np.savez_compressed(path, images=scans.images, labels=scans.labels, ids=scans.ids)


def read_scans(path: Path) -> Scans:
    """What `save_scans` wrote.

    Raises:
        ConfigurationError: the file is missing or is not one of ours.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Scans(arrays["images"], arrays["labels"], arrays["ids"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"scans {path}: {error}; write them with `mmr1 data digits`") from None


__all__ = ["NUM_TRAIN_SCANS", "Scans", "load_scans", "read_scans", "save_scans"]
