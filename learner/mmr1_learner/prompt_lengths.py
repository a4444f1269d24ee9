"""Do the run's prompts fit `max_prompt_length`? Asked before the first is sampled; later each would be dead by itself.

Only the few that look longest are encoded, so a large dataset costs no more than one pass over its texts, and the
headers of as many images as `image_checks` allows. It does not know what a prompt is for.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from functools import cache

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import Problem, PromptId
from mmr1_learner.model import PromptEncoder
from mmr1_learner.prompts import PromptFactory

_CANDIDATES = 4  # by each measure
_PIXELS_PER_TOKEN = 28 * 28  # of a Qwen2-VL; for ordering only
_CHARACTERS_PER_TOKEN = 3


def check_prompt_lengths(
    config: RunConfig, encoder: PromptEncoder, prompts: PromptFactory, problems: Sequence[Problem]
) -> None:
    """Encode the problems that have the largest images, the longest texts, and most of both.

    Raises:
        ConfigurationError: one of them is longer than max_prompt_length, or an image is no longer what it was.
    """
    store = ImageStore(config.resolved_image_root)
    try:
        for problem in _longest(problems, cache(store.num_pixels), config.image_checks):
            _check(config, encoder, prompts, problem, store)
    except UnreachableImageError:
        raise  # a restart may mend it
    except ImageError as error:
        raise ConfigurationError(f"{error}; restore it, and the same command goes on") from None


def _check(
    config: RunConfig, encoder: PromptEncoder, prompts: PromptFactory, problem: Problem, store: ImageStore
) -> None:
    prompt = prompts.make(PromptId(f"{config.run}/length", 0), problem, prompts.sampling(1.0, None), 1)
    images = [store.open(image) for image in prompt.images]
    length = len(encoder.encode(prompt.text, images).token_ids)
    if length > config.max_prompt_length:
        sizes = " and ".join(f"{image.width} x {image.height}" for image in images)
        pictures = f" with an image of {sizes} pixels" if images else ""
        remedy = " or lower max_pixels" if images else ""
        raise ConfigurationError(
            f"the prompt of {problem.problem[:40]!r}{pictures} has {length} tokens, above max_prompt_length "
            f"{config.max_prompt_length}; raise it{remedy}"
        )


def _longest(problems: Sequence[Problem], pixels: Callable[[str], int], image_checks: int) -> list[Problem]:
    """A few candidates by each measure, each once. Images of `image_checks` problems at most are measured."""
    every = math.ceil(len(problems) / image_checks) if image_checks else 0
    best: tuple[list[tuple[float, int, Problem]], ...] = ([], [], [], [])
    for index, problem in enumerate(problems):
        is_measured = every and index % every == 0
        area = sum(map(pixels, problem.images)) / _PIXELS_PER_TOKEN if is_measured else 0.0
        text = len(problem.problem) / _CHARACTERS_PER_TOKEN
        count = len(problem.images)  # an image of any size may become as many tokens
        for heap, measure in zip(best, (area, count, text, area + text), strict=True):
            candidate = (measure, -index, problem)
            if len(heap) < _CANDIDATES:
                heapq.heappush(heap, candidate)
            else:
                heapq.heappushpop(heap, candidate)
    return list({index: problem for heap in best for _, index, problem in heap}.values())
