"""The tasks that come with the server, one file each."""

from __future__ import annotations

from ..registry import Registry
from .counting import COUNTING
from .format import FORMAT
from .presets import PRESETS


def builtin_tasks() -> Registry:
    return Registry([COUNTING, FORMAT, *PRESETS])
