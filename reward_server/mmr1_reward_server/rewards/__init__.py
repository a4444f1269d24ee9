"""The tasks that come with the server, one file each."""

from __future__ import annotations

from ..registry import Registry
from .accuracy import ACCURACY
from .counting import COUNTING
from .detection import DETECTION
from .format import FORMAT
from .grounding import GROUNDING
from .length import LENGTH
from .ocr import OCR
from .presets import PRESETS
from .repetition import REPETITION


def builtin_tasks() -> Registry:
    return Registry([COUNTING, GROUNDING, DETECTION, OCR, ACCURACY, FORMAT, LENGTH, REPETITION, *PRESETS])
