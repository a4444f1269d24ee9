"""Rewards that others have published, as tasks that reproduce them: one file for each family.

A preset takes the solution as the original's dataset holds it and the response as text. Where the original has a bug,
the preset gives the right value, and the published one with `params: {"bug_compatible": true}`.
"""

from __future__ import annotations

from typing import Any

from ...registry import Task
from .mmr1 import MMR1_GROUNDING, MMR1_OCR
from .pr1 import PR1_COUNTING, PR1_GROUNDING
from .pr1_detection import PR1_DETECTION
from .r1v import R1V_ACCURACY
from .vlmr1 import VLMR1_IOU
from .vlmr1_detection import VLMR1_OD_AP, VLMR1_WEIGHTED_SUM

PRESETS: list[Task[Any, Any]] = [
    MMR1_OCR,
    MMR1_GROUNDING,
    PR1_GROUNDING,
    PR1_COUNTING,
    PR1_DETECTION,
    VLMR1_IOU,
    VLMR1_WEIGHTED_SUM,
    VLMR1_OD_AP,
    R1V_ACCURACY,
]
