"""What one prompt costs, in tokens and multiplications: each token once, a prompt shared by its completions.

Prompts and completions are taken to be as long as the run allows. It knows no GPU and no layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mmr1.capacity.shapes import Shape, Stack, patches_of
from mmr1.config.plan_options import PlanConfig
from mmr1.errors import ConfigurationError
from mmr1.families import pixel_bounds
from mmr1.model_folder import PROCESSOR_FILES
from mmr1.resizing import Resize


@dataclass(frozen=True, slots=True)
class Work:
    """A prompt with its images and completions, and which of the model's parameters are trained."""

    shape: Shape
    prompt_tokens: int  # those of images included
    patches: int  # of one attention of the vision tower
    num_calls: int  # of the tower for a prompt: its images, or their tiles
    num_generations: int
    completion_tokens: int
    trains_all: bool = True  # not only adapters
    trains_vision: bool = True
    adapter_parameters: int = 0
    sends_adapters: bool = False  # to rollout servers, not whole weights
    number_bytes: int = 2  # of a weight, an activation, a cached value: 4 in float32
    with_reference: bool = False
    image_tokens: int = 0  # of the prompt's

    @property
    def trained_parameters(self) -> int:
        if not self.trains_all:
            return self.adapter_parameters
        return self.shape.num_parameters - (0 if self.trains_vision else self.shape.vision_parameters)

    @property
    def weight_bytes(self) -> int:
        return self.number_bytes * self.shape.num_parameters

    @property
    def decoder_bytes(self) -> int:
        return self.number_bytes * self.shape.decoder_parameters

    @property
    def cache_bytes_per_token(self) -> int:
        text = self.shape.text
        return self.number_bytes * 2 * text.num_layers * text.num_kv_heads * text.head_dim

    def text_tokens(self, generations: int) -> int:
        return self.num_prefixes(generations) * self.prompt_tokens + generations * self.completion_tokens

    def num_prefixes(self, generations: int) -> int:
        """Prompts that so many completions in one forward need."""
        return -(-generations // self.num_generations)

    def text_flops(self, generations: int) -> float:
        """Forward, of so many completions and their prompts: the layers, and the head where tokens are scored."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        pairs: float = self.num_prefixes(generations) * prompt**2 / 2
        pairs += generations * completion * (prompt + completion / 2)
        text, head = self.shape.text, self.shape.vocab_size * self.shape.text.hidden
        dense = text.num_parameters * self.text_tokens(generations) + head * generations * completion
        return 2 * dense + text.attention_flops(pairs, pairs)

    def vision_flops(self, generations: int) -> float:
        """Forward, of the images of so many completions' prompts."""
        vision, patches = self.shape.vision, self.patches
        window = min(vision.window, patches)
        dense: float = (vision.num_parameters + self.shape.patch_parameters) * patches
        dense += self.shape.projector_parameters * patches / self.shape.merge**2
        once = 2 * dense + vision.attention_flops(patches**2, patches * window)
        return self.num_prefixes(generations) * self.num_calls * once

    def learner_flops(self, generations: int, *, twice: bool = False) -> float:
        """Forward and backward; a backward pass is two forwards, one of which is for weights that are trained.

        `twice`: the text is computed again in the backward pass. The tower's second computation is not counted: it is
        part of the share of the peak that was measured.
        """
        backward = 2 if self.trains_all else 1
        text = (1 + backward + twice + self.with_reference) * self.text_flops(generations)
        through_tower = backward if self.trains_vision else 0
        return text + (1 + through_tower + self.with_reference) * self.vision_flops(generations)

    def prefill_flops(self) -> float:
        """Of one prompt in the rollout server; its completions share it. The head is computed once a completion."""
        text = self.shape.text
        attention = text.attention_flops(self.prompt_tokens**2 / 2, self.prompt_tokens**2 / 2)
        return 2 * text.num_parameters * self.prompt_tokens + attention + self.vision_flops(1)


def work_of(config: PlanConfig, shape: Shape, folder: Path) -> Work:
    """What a prompt of this run costs, with the plan's images in it.

    Raises:
        ConfigurationError: the image cannot be, does not fit the prompt, or nobody said into how many tiles it is cut.
    """
    bounds = pixel_bounds(config, shape.model_type)
    seen = _seen(shape, folder, bounds, config.size) if shape.tile is None else None
    if shape.tile is not None and shape.model_type != "llava" and config.image_tiles is None:
        raise ConfigurationError(
            f"a {shape.model_type} cuts images into tiles; say into how many, the small copy of the whole included: "
            "--image_tiles 1 where the processor does not cut, 5 for two by two"
        )
    patches, calls = patches_of(shape, seen, config.image_tiles or 1)
    image_tokens = config.images * calls * (patches // shape.merge**2)
    if image_tokens >= config.max_prompt_length:
        raise ConfigurationError(
            f"the images of a prompt are {image_tokens} tokens and max_prompt_length is {config.max_prompt_length}; "
            f"raise it above them by what the text takes, or {'lower max_pixels' if shape.tile is None else 'cut less'}"
        )
    return Work(
        shape,
        prompt_tokens=config.max_prompt_length,
        patches=patches,
        num_calls=config.images * calls,
        num_generations=config.num_generations,
        completion_tokens=config.max_completion_length,
        trains_all=not config.lora_rank,
        trains_vision=not config.freeze_vision_tower,
        adapter_parameters=_adapters(config, shape),
        sends_adapters=config.sends_adapters,
        number_bytes=4 if config.planned_dtype == "float32" else 2,
        with_reference=bool(config.kl),
        image_tokens=image_tokens,
    )


def _seen(shape: Shape, folder: Path, bounds: Mapping[str, int], size: tuple[int, int]) -> tuple[int, int]:
    factor = shape.patch_size * shape.merge
    there = any((folder / name).is_file() for name in PROCESSOR_FILES)
    resize = Resize.of_model(folder, bounds) if there else _with_bounds(Resize(factor), bounds)
    try:
        return resize(size)
    except ValueError as error:
        raise ConfigurationError(f"image_size: an image {error}; give another size") from None


def _with_bounds(resize: Resize, bounds: Mapping[str, int]) -> Resize:
    return replace(
        resize,
        min_pixels=bounds.get("min_pixels", resize.min_pixels),
        max_pixels=bounds.get("max_pixels", resize.max_pixels),
    )


def _adapters(config: PlanConfig, shape: Shape) -> int:
    """Parameters of LoRA's two matrices beside each layer that the run names."""
    named = set(config.lora_target_modules)
    in_tower = _GATED if shape.vision.gated else set() if shape.tile is None else _SEPARATE
    stacks: list[tuple[Stack, set[str]]] = [(shape.text, named)]
    if not config.freeze_vision_tower:
        stacks.append((shape.vision, named & in_tower))
    return sum(
        stack.num_layers * config.lora_rank * sum(sides)
        for stack, names in stacks
        for name, sides in stack.matrices.items()
        if name in names
    )


# What a tower has by the names that a language model has too: Qwen2.5-VL's its feed-forward part, SigLIP, CLIP and
# InternViT their queries, keys and values. The towers of the other Qwen-VLs have none.
_GATED = {"gate_proj", "up_proj", "down_proj"}
_SEPARATE = {"q_proj", "k_proj", "v_proj"}
