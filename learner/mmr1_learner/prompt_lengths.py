"""Do the run's prompts fit `max_prompt_length`? Asked before the first is sampled; later each would be dead by itself.

Only the few that look longest are encoded, so a large dataset costs no more than reading its images' headers. It does
not know what a prompt is for.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import cache

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, ImageStore
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
        for problem in _longest(problems, store):
            _check(config, encoder, prompts, problem, store)
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


def _longest(problems: Sequence[Problem], store: ImageStore) -> list[Problem]:
    """A few candidates, each once."""

    pixels = cache(store.num_pixels)

    def area(problem: Problem) -> float:
        return sum(pixels(path) for path in problem.images) / _PIXELS_PER_TOKEN

    def text(problem: Problem) -> float:
        return len(problem.problem) / _CHARACTERS_PER_TOKEN

    def count(problem: Problem) -> float:
        """Where an image of any size becomes as many tokens."""
        return len(problem.images)

    measures: tuple[Callable[[Problem], float], ...] = (
        area,
        count,
        text,
        lambda problem: area(problem) + text(problem),
    )
    found = [problem for measure in measures for problem in heapq.nlargest(_CANDIDATES, problems, key=measure)]
    return list({id(problem): problem for problem in found}.values())
