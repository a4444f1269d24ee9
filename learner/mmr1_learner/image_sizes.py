"""What a model of the Qwen family derives from its images' sizes, worked out on the host before a forward.

The model would ask for the sizes number by number in the middle of a forward, and on a GPU each question waits for all
that is under way there, so that nothing can be launched ahead. transformers takes the answers as arguments; they are
made here by its own functions. Of Qwen2-VL and Qwen2.5-VL the features' places among the embeddings are found here too,
and features are put there by index; Qwen3-VL, where they go into several layers, still looks for them itself. This file
knows sizes and no pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from mmr1.errors import ConfigurationError
from mmr1_learner.vision_attention import TOWERS_WITH_SIZES

_GRID = "image_grid_thw"
# Read in Python: by the tower, and by vision_attention.py.
ON_HOST = frozenset({_GRID, "image_cu_seqlens", "image_cu_window_seqlens"})
PLACES = "image_places"  # [features] indices into the flattened positions of a call
# Those whose images' features go among the embeddings and nowhere else.
_EMBEDDED_ALONE = ("qwen2_vl", "qwen2_5_vl")


class ImageSizes:
    """For one model. Those of other families get nothing, and ask what they must."""

    def __init__(self, hf: Any) -> None:
        self._known = hf.config.model_type in TOWERS_WITH_SIZES
        if self._known:
            self._tower = hf.model.visual
            self._token_id: int = hf.config.image_token_id
            self._places = hf.config.model_type in _EMBEDDED_ALONE

    def arguments(self, input_ids: Tensor, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of one call of the model, with token ids [B, L]: what it takes beside, by name."""
        if not self._known or _GRID not in images:
            return {}
        tower, grid = self._tower, images[_GRID]
        found = {
            "image_position_ids": get_vision_position_ids(grid, tower.spatial_merge_size),
            "image_cu_seqlens": get_vision_cu_seqlens(grid),
        }
        if self._places:
            found[PLACES] = (input_ids.flatten() == self._token_id).nonzero()[:, 0]
        if hasattr(tower, "window_size"):
            index, boundaries = get_vision_window_index(
                grid, tower.spatial_merge_size, tower.window_size, tower.patch_size
            )
            found |= {"image_window_index": index, "image_cu_window_seqlens": boundaries}
        if hasattr(tower, "num_grid_per_side"):
            indices, weights = get_vision_interpolation_indices_and_weights(
                grid,
                tower.num_grid_per_side,
                tower.interpolation_mode,
                tower.interpolation_align_corners,
                tower.config.spatial_merge_size,
            )
            found |= {"image_interp_indices": indices, "image_interp_weights": weights}
        return found

    def check(self, token_ids: tuple[int, ...], images: dict[str, Tensor]) -> None:
        """A prompt has as many placeholders as its images have features: a forward does not count.

        Raises:
            ConfigurationError: it has not, so processor and model are not of one kind.
        """
        if not self._known:
            return
        grid = images.get(_GRID)
        features = 0 if grid is None else int(grid.prod(-1).sum()) // self._tower.spatial_merge_size**2
        if (tokens := token_ids.count(self._token_id)) != features:
            raise ConfigurationError(
                f"a prompt has {tokens} placeholders for the {features} features that the model makes of its images: "
                "the model's preprocessor_config.json is not of its config.json (merge_size, spatial_merge_size)"
            )


def with_features(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a Hugging Face model's forward with its images' features among the embeddings already.

    By index: transformers looks for the places in a mask, in forward and backward, and waits for the device each time.
    A model to which features go in several layers does its own looking.
    """
    arguments = dict(arguments)
    places = arguments.pop(PLACES, None)
    if places is None:
        return arguments
    embeddings = model.get_input_embeddings()(arguments.pop("input_ids"))
    images = {name: arguments.pop(name) for name in [*arguments] if name.startswith(("image_", "pixel_"))}
    features = torch.cat(model.get_image_features(**images, return_dict=True).pooler_output)
    placed = embeddings.flatten(0, 1).index_copy(0, places, features.to(embeddings.dtype))
    return {**arguments, "inputs_embeds": placed.view_as(embeddings)}


__all__ = ["ON_HOST", "PLACES", "ImageSizes", "with_features"]
