"""The tasks that are drawn from the scans: one table, and the streams of randomness that keep their splits apart.

This file knows nothing of files, models or templates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmr1.digits import counting, detection, grounding, ocr
from mmr1.digits.canvas import PATCH, Drawn
from mmr1.digits.scans import Scans
from mmr1.errors import ConfigurationError

# A file's problems and the endless supply of a warm start never share a stream.
TRAIN_STREAM, EVAL_STREAM, SUPPLY_STREAM = 0, 1, 2


@dataclass(frozen=True, slots=True)
class DigitTask:
    """A kind of problem. `name` is what people ask for, `task` the reward server's; sizes are a canvas's in pixels."""

    name: str
    task: str
    draw: Callable[[np.random.Generator, Scans, int], Drawn]
    questions: tuple[str, ...]  # all that it asks
    canvas: int  # the usual width
    step: int = PATCH  # other widths are multiples of this: a Qwen-VL processor then leaves the image alone

    def check_canvas(self, side: int) -> None:
        """Raise ConfigurationError unless the digits fit and no processor would resize the canvas."""
        if side < self.canvas or side % self.step:
            raise ConfigurationError(
                f"canvas {side}: must be a multiple of {self.step} (images are then never resized) of at least "
                f"{self.canvas} (the digits fit and can be told apart); "
                f"try {max(self.canvas, -(-side // self.step) * self.step)}"
            )


def _of_each_digit(question: str) -> tuple[str, ...]:
    return tuple(question.format(digit=digit) for digit in range(10))


TASKS = {
    task.name: task
    for task in (
        DigitTask("counting", "counting", counting.draw, (counting.QUESTION,), 112),
        DigitTask("counting-of-one", "counting", counting.draw_of_one, _of_each_digit(counting.OF_ONE), 112),
        DigitTask("ocr", "ocr", ocr.draw, (ocr.QUESTION,), 140),
        DigitTask("grounding", "grounding", grounding.draw, _of_each_digit(grounding.QUESTION), 84),
        DigitTask("detection", "detection", detection.draw, (detection.QUESTION,), 84),
    )
}

__all__ = ["EVAL_STREAM", "SUPPLY_STREAM", "TASKS", "TRAIN_STREAM", "DigitTask"]
