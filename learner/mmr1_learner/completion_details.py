"""What a completion's line holds beside its verdict, so that it can be shown: tokens, gaps, boxes' spaces, sizes.

It reads images' headers and a tokenizer, and decides nothing: which tokens are kept stands in token_gaps.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import Prompt, Rollout
from mmr1_learner.token_texts import TokenTexts

_SPACES = ("response_space", "solution_space", "resized_size")  # params that say what a coordinate counts
_MAX_SIZES = 4096  # images whose size is remembered


class CompletionDetails:
    """One run's: its tokenizer, and the folder of its images."""

    def __init__(self, tokenizer: Any, images: ImageStore) -> None:
        self._texts = TokenTexts(tokenizer)
        self._images = images
        self._sizes: OrderedDict[str, list[int] | None] = OrderedDict()

    def of_prompt(self, prompt: Prompt) -> dict[str, Any]:
        """`image_sizes`: each image's width and height, null for one that is gone. `coordinates`: params, by task."""
        spaces = {
            spec.task: {name: spec.params[name] for name in _SPACES if name in spec.params} for spec in prompt.rewards
        }
        return {
            "image_sizes": [self._size(image.path) for image in prompt.images],
            "coordinates": {task: params for task, params in spaces.items() if params},
        }

    def of_rollout(self, rollout: Rollout, gaps: Sequence[float] | None) -> dict[str, Any]:
        """`tokens` and `gaps` of the completion's first len(gaps) tokens, learner minus sampler, in nats."""
        if gaps is None:
            return {}
        texts = self._texts.of(rollout.token_ids[: len(gaps)])
        return {"tokens": texts, "gaps": [float(f"{gap:.3g}") for gap in gaps]}

    def _size(self, path: str) -> list[int] | None:
        if path not in self._sizes:
            try:
                self._sizes[path] = list(self._images.size(path))
            except UnreachableImageError:
                return None  # it is not gone: the next line asks again
            except ImageError:
                self._sizes[path] = None
            if len(self._sizes) > _MAX_SIZES:
                self._sizes.popitem(last=False)
        return self._sizes[path]


__all__ = ["CompletionDetails"]
