"""The tasks that come with the server, one file each."""

from __future__ import annotations

from ..registry import Registry
from .counting import COUNTING
from .detection import DETECTION
from .format import FORMAT
from .grounding import GROUNDING
from .presets import PRESETS


def builtin_tasks() -> Registry:
    return Registry([COUNTING, DETECTION, FORMAT, GROUNDING, *PRESETS])
