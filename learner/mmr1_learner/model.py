"""The policy: a Hugging Face vision-language model that scores rows, and the processor that feeds it.

Policy.forward takes a RowBatch and returns log-probabilities and entropy of its completion tokens; logits never leave
this module. Names of tensors, as vLLM and checkpoints know them, are those of the wrapped model. Nothing here knows of
losses, optimizers or DeepSpeed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.records import TensorSpec
from mmr1_learner.adapters import choose_trainable
from mmr1_learner.loss.token_stats import Projection, TokenStats, token_stats
from mmr1_learner.rows import EncodedPrompt, PositionCache, RowBatch, attention_mask

# Families whose rows this learner lays out exactly: mrope positions, placeholders expanded by grid.
SUPPORTED_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class Policy(nn.Module):
    """The trained model. `forward` scores the completion tokens of a RowBatch."""

    hf: Any

    def __init__(self, hf: nn.Module) -> None:
        super().__init__()
        self.hf = hf

    def forward(
        self, batch: RowBatch, reference: Projection | None = None, score: bool = True
    ) -> TokenStats | Projection:
        """Score the batch's completion tokens, and with a reference the divergence from it.

        Without `score`, what the logits are made of, for another policy to be compared with: without gradient, and
        whole for as long as it is held, also where ZeRO-3 gathers parameters only for a module that is called.
        """
        hidden, head = self._hidden(batch), self.hf.lm_head.weight
        if not score:
            return Projection(hidden.detach(), head.detach())
        return token_stats(hidden, head, batch.targets, batch.temperatures, batch.forbidden, reference=reference)

    def _hidden(self, batch: RowBatch) -> Tensor:
        """[N, H] final hidden states, each at the position that predicts its token."""
        dtype = self.hf.dtype
        output = self.hf.model(
            input_ids=batch.input_ids,
            attention_mask=attention_mask(batch.segments, dtype),
            position_ids=batch.position_ids,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
            mm_token_type_ids=batch.is_image,
            use_cache=False,
        )
        hidden = output.last_hidden_state  # [B, L, H]
        chosen: Tensor = hidden.reshape(-1, hidden.shape[-1])[batch.predictors]
        return chosen

    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """Every parameter by its checkpoint name; a tied one appears once."""
        return [(name, parameter.data) for name, parameter in self.hf.named_parameters()]

    def manifest(self) -> tuple[TensorSpec, ...]:
        """What a weight update sends, in the order in which it is sent."""
        return tuple(
            TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in self.named_tensors()
        )

    @contextmanager
    def scaled(self, name: str, factor: float) -> Iterator[None]:
        """One of the model's parameters times `factor`, for a while; restored exactly."""
        parameter = self.hf.get_parameter(name)
        original = parameter.data.clone()
        parameter.data.mul_(factor)
        try:
            yield
        finally:
            parameter.data.copy_(original)

    def frozen_copy(self) -> Policy:
        """The reference model: this policy as it is now, without gradients."""
        reference = copy.deepcopy(self)
        return reference.requires_grad_(False).eval()


def load_policy(path: str, config: RunConfig) -> Policy:
    """Load a checkpoint in the run's dtype.

    Raises:
        ConfigurationError: no such model, a family this learner cannot lay out, or nothing to freeze or adapt by the
            names given.
    """
    try:
        hf = AutoModelForImageTextToText.from_pretrained(
            path, dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model {path}: {' '.join(str(error).split())[:300]}") from None
    family = hf.config.model_type
    if family not in SUPPORTED_FAMILIES:
        raise ConfigurationError(f"model {path} is a {family}; this learner trains {', '.join(SUPPORTED_FAMILIES)}")
    if config.gradient_checkpointing:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    choose_trainable(hf, config)
    return Policy(hf).train()


class PromptEncoder:
    """Text and images to what the model takes. The same processor as the engine's, so both see one prompt."""

    def __init__(self, path: str | Path, policy: Policy, config: RunConfig) -> None:
        bounds = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
        self.processor = AutoProcessor.from_pretrained(path, **{k: v for k, v in bounds.items() if v is not None})
        self.config = policy.hf.config
        self.image_token_id: int = self.config.image_token_id
        self.pad_token_id: int = self.processor.tokenizer.pad_token_id or 0
        model = policy.hf.model

        def rope_index(token_ids: Tensor, is_image: Tensor, grid: Tensor | None) -> Tensor:
            positions: Tensor = model.get_rope_index(
                input_ids=token_ids, mm_token_type_ids=is_image, image_grid_thw=grid
            )[0]
            return positions

        self._positions = PositionCache(rope_index)

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Placeholders that a completion must never contain: a stray one would count as an image."""
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        found = (getattr(self.config, name, None) for name in names)
        return tuple(sorted({token for token in found if token is not None}))

    def encode(self, text: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        """Tokenise, expand placeholders, and cut images into patches."""
        encoded = self.processor(text=[text], images=list(images) or None, return_tensors="pt")
        token_ids = tuple(encoded["input_ids"][0].tolist())
        grid = encoded.get("image_grid_thw")
        return EncodedPrompt(
            token_ids=token_ids,
            position_ids=self._positions.positions(token_ids, self.image_token_id, grid),
            pixel_values=encoded.get("pixel_values"),
            image_grid_thw=grid,
        )
