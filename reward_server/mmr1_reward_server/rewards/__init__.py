"""The tasks that come with the server, one file each."""

from __future__ import annotations

from ..registry import Registry
from .accuracy import ACCURACY
from .counting import COUNTING
from .format import FORMAT
from .length import LENGTH
from .ocr import OCR
from .repetition import REPETITION


def builtin_tasks() -> Registry:
    return Registry([ACCURACY, COUNTING, FORMAT, LENGTH, OCR, REPETITION])
