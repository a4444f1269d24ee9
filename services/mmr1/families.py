"""What is particular to a model family: towers, how positions are counted, placeholder, processor, coordinates.

Facts only, about transformers' classes of families that vLLM serves too. A vision-language model of another family is
trained all the same, in padded rows that leave every such question to the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mmr1.errors import ConfigurationError

if TYPE_CHECKING:
    from mmr1.config import RunConfig


@dataclass(frozen=True, slots=True)
class Family:
    """One family. Towers are attributes of transformers' `<Family>ForConditionalGeneration.model`."""

    vision_tower: str
    language_model: str
    image_placeholder: str  # in a prompt's text, once for each image
    mrope: bool = False  # positions have temporal, height and width parts; get_rope_index makes them
    image_axis: int = 0  # along which the images of several prompts are joined
    takes_pixel_bounds: bool = False  # its image processor has min_pixels and max_pixels
    # What the published models say coordinates in; absolute: pixels of the resized image. None: not known here.
    coordinates: Literal["absolute", "normalized_1000"] | None = None
    # (prefix of transformers' name of a parameter, what published folders and vLLM have in its place)
    renamed: tuple[str, str] = ("", "")
    takes_adapters: bool = False  # vLLM's class applies LoRA adapters, and ours have been tested in it

    def published_name(self, name: str) -> str:
        """A parameter's name in published folders, by transformers' name of it."""
        ours, published = self.renamed
        return published + name.removeprefix(ours) if ours and name.startswith(ours) else name


_QWEN = Family("visual", "language_model", "<|image_pad|>", mrope=True, takes_pixel_bounds=True, takes_adapters=True)
# Pixels [1, tiles, channels, height, width]: a batch axis before the images.
_IDEFICS = Family("vision_model", "text_model", "<image>", image_axis=1, takes_adapters=True)

FAMILIES: dict[str, Family] = {
    "qwen2_vl": replace(_QWEN, coordinates="normalized_1000"),
    "qwen2_5_vl": replace(_QWEN, coordinates="absolute"),
    "qwen3_vl": replace(_QWEN, coordinates="normalized_1000"),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    # In transformers 5 a CLIP tower is one level flatter than in every published folder.
    "llava": Family(
        "vision_tower",
        "language_model",
        "<image>",
        renamed=("model.vision_tower.", "model.vision_tower.vision_model."),
        takes_adapters=True,
    ),
    "internvl": Family("vision_tower", "language_model", "<IMG_CONTEXT>", takes_adapters=True),
}


def pixel_bounds(config: RunConfig, model_type: str) -> dict[str, int]:
    """The run's bounds as the processor of this family takes them.

    Raises:
        ConfigurationError: it has none, and the run sets one.
    """
    bounds = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    given = {name: value for name, value in bounds.items() if value is not None}
    family = FAMILIES.get(model_type)
    if given and family is not None and not family.takes_pixel_bounds:
        raise ConfigurationError(
            f"option {next(iter(given))!r}: the processor of a {model_type} has no bounds of pixels; leave it out, and "
            "change the size in the model's preprocessor_config.json if images must be smaller"
        )
    return given


def require_known_layout(config: RunConfig, model_type: str) -> None:
    """At ZeRO 3 every rank must call the model equally often, which padded rows do not.

    Raises:
        ConfigurationError: the family is not known, so its rows are padded, and the stage is 3.
    """
    if model_type not in FAMILIES and config.zero_stage > 2:
        raise ConfigurationError(
            f"model {config.model} is a {model_type}, trained in padded rows, and the number of calls then differs "
            "between ranks; set zero_stage to 2 or less"
        )
