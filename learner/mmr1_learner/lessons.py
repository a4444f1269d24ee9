"""Drawn problems as tensors: what a warm start trains on, worded and encoded as a run words and encodes them.

Prompts and answers are rendered by the templates that a run uses; canvases become patches as the processor makes them,
thousands of times faster. This file knows nothing of losses or optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmr1.chat_template import ChatTemplate
from mmr1.digits.canvas import PATCH, Drawn
from mmr1.digits.scans import Scans
from mmr1.digits.tasks import SUPPLY_STREAM, DigitTask
from mmr1.records import Problem
from mmr1.templates import IMAGE_PLACEHOLDER, Templates, render, render_answer

Array = npt.NDArray[Any]
Encode = Callable[[Sequence[Drawn]], tuple[Array, ...]]
IGNORED = -100  # in answers shorter than the longest of a batch: no token


class Lesson(NamedTuple):
    """B problems of one task: `canvases` [B, H, W] uint8, `prompts` [B, P] and `answers` [B, A] of ids.

    An answer ends with the end of turn, and then with IGNORED up to the longest.
    """

    canvases: Tensor
    prompts: Tensor
    answers: Tensor

    def to(self, device: torch.device) -> Lesson:
        return Lesson(*(tensor.to(device) for tensor in self))

    def first_tokens(self, number: int | None) -> Lesson:
        """The same with IGNORED for all but the first tokens of each answer; all of it where no number is given."""
        if number is None:
            return self
        ignored = torch.arange(self.answers.shape[1]) >= number
        return self._replace(answers=self.answers.masked_fill(ignored, IGNORED))


class Encoder:
    """Words to ids. All questions of a task must take the same number of tokens, as they do in our tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._templates, self._chat = Templates(), ChatTemplate(tokenizer.chat_template, name="the model")
        self._prompts: dict[tuple[str, int], list[int]] = {}  # few differ, and rendering one takes a millisecond

    def lesson(self, canvases: Tensor, problems: Sequence[tuple[str, Any]]) -> Lesson:
        """`problems` are (problem, solution), one for each canvas."""
        num_image_tokens = (canvases.shape[1] // PATCH) * (canvases.shape[2] // PATCH)
        prompts = torch.tensor([self._prompt(problem, num_image_tokens) for problem, _ in problems])
        turn_end = self._tokenizer.eos_token
        answers = self._tokenizer(
            [render_answer(_problem(text, solution), self._templates) + turn_end for text, solution in problems]
        )["input_ids"]
        longest = max(map(len, answers))
        padded = torch.tensor([ids + [IGNORED] * (longest - len(ids)) for ids in answers])
        return Lesson(canvases, prompts, padded)

    def arrays(self, drawn: Sequence[Drawn]) -> tuple[Array, ...]:
        """The arrays of the lesson of problems whose pictures have one size."""
        canvases = torch.from_numpy(np.stack([one.pixels for one in drawn]))
        lesson = self.lesson(canvases, [(one.problem, one.solution) for one in drawn])
        return tuple(tensor.numpy() for tensor in lesson)

    def _prompt(self, problem: str, num_image_tokens: int) -> list[int]:
        if (problem, num_image_tokens) not in self._prompts:
            text = render(_problem(problem, None), self._templates, self._chat)
            text = text.replace(IMAGE_PLACEHOLDER, IMAGE_PLACEHOLDER * num_image_tokens)
            self._prompts[problem, num_image_tokens] = self._tokenizer(text)["input_ids"]
        return self._prompts[problem, num_image_tokens]


def _problem(problem: str, solution: Any) -> Problem:
    return Problem(0, problem, solution, ("image",), "")


class Supply(IterableDataset[tuple[Array, ...]]):
    """Endless batches of freshly drawn problems of one task, as the arrays that `encode` makes of them.

    Batch i depends on the seed and on i alone, however many processes draw.
    """

    def __init__(self, task: DigitTask, scans: Scans, side: int, encode: Encode, *, batch_size: int, seed: int) -> None:
        self.task, self.scans, self.side, self.encode = task, scans, side, encode
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            rng = np.random.default_rng([self.seed, SUPPLY_STREAM, number])
            yield self.encode([self.task.draw(rng, self.scans, self.side) for _ in range(self.batch_size)])
            number += step

    def batches(self, workers: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches in their order, drawn by this many processes; 0 draws in this one."""
        # Arrays come through a pipe. Tensors would be handed over by a thread of the process that draws, which is busy.
        loader = DataLoader(
            self,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            collate_fn=_as_it_is,
        )
        return (tuple(map(torch.from_numpy, arrays)) for arrays in loader)


def _as_it_is(arrays: Any) -> Any:  # a DataLoader expects to be given a list
    return arrays


def patches(canvases: Tensor, image_processor: Any) -> Tensor:
    """Gray canvases [B, H, W] uint8 to pixel_values [B * patches, D], as the processor gives for multiples of 28.

    Runs on the canvases' device.
    """
    batch, height, width = canvases.shape
    size, merge, repeat = image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size
    mean = torch.tensor(image_processor.image_mean, device=canvases.device).view(1, 3, 1, 1)
    std = torch.tensor(image_processor.image_std, device=canvases.device).view(1, 3, 1, 1)
    pixels: Tensor = (canvases[:, None].float() * image_processor.rescale_factor - mean) / std  # [B, 3, H, W]
    rows, columns = height // (size * merge), width // (size * merge)
    pixels = pixels.view(batch, 3, rows, merge, size, columns, merge, size).permute(0, 2, 5, 3, 6, 1, 4, 7)
    pixels = pixels.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, repeat, -1, -1)  # time comes after the channel
    return pixels.reshape(batch * (height // size) * (width // size), 3 * repeat * size * size)


__all__ = ["IGNORED", "Array", "Encode", "Encoder", "Lesson", "Supply", "patches"]
