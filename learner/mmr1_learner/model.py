"""The policy: a Hugging Face vision-language model that scores rows, and the processor that feeds it.

Policy.forward takes a RowBatch and returns log-probabilities and entropy of its completion tokens; logits never leave
this module. Names of tensors, as vLLM and checkpoints know them, are those of the wrapped model. Nothing here knows of
losses, optimizers or DeepSpeed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmr1.adapter_limits import check_adapter_family
from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES, Family, pixel_bounds, require_known_layout
from mmr1.records import TensorSpec
from mmr1_learner.adapters import choose_trainable
from mmr1_learner.fused_kernels import fuse_kernels
from mmr1_learner.hollow import hollow_copies, hollow_model, outline
from mmr1_learner.image_sizes import ImageSizes, with_features
from mmr1_learner.loss.token_stats import Projection, TokenStats, token_stats
from mmr1_learner.prefix_attention import attend_by_stretch, takes_stretches
from mmr1_learner.prompts import forbidden_tokens
from mmr1_learner.ranks import Ranks
from mmr1_learner.rows import EncodedPrompt, PositionCache, RowBatch
from mmr1_learner.vision_attention import batch_vision_attention

_TEXT_INPUTS = ("input_ids", "attention_mask")
_RATES = ("p", "drop_prob")  # of torch's dropout, and of what drops whole paths

log = structlog.get_logger()


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
        hidden, head = self._hidden(batch), self.hf.get_output_embeddings().weight
        if not score:
            return Projection(hidden.detach(), head.detach())
        return token_stats(hidden, head, batch.targets, batch.temperatures, batch.forbidden, reference=reference)

    def _hidden(self, batch: RowBatch) -> Tensor:
        """[N, H] final hidden states, each at the position that predicts its token."""
        by_stretch = batch.calls[0].stretches is not None and takes_stretches(self.hf)
        given = [with_features(self.hf.model, call.arguments(self.hf.dtype, by_stretch)) for call in batch.calls]
        states = [self.hf.model(**one, use_cache=False).last_hidden_state.flatten(0, 1) for one in given]
        chosen: Tensor = (states[0] if len(states) == 1 else torch.cat(states))[batch.predictors]
        return chosen

    @cached_property
    def drops_out(self) -> bool:
        """Whether it computes otherwise in training: something in it leaves out at random."""
        rates = [getattr(m, name, 0.0) for m in self.modules() for name in _RATES if "drop" in type(m).__name__.lower()]
        configs = (self.hf.config, *(getattr(self.hf.config, part, None) for part in self.hf.config.sub_configs))
        rates += [getattr(config, "attention_dropout", 0.0) for config in configs]
        return any(rates)

    def published_name(self, name: str) -> str:
        """What published folders and rollout servers call the model's parameter of that name."""
        family = FAMILIES.get(self.hf.config.model_type)
        return name if family is None else family.published_name(name)

    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """Every parameter by its published name; a tied one appears once."""
        return [(self.published_name(name), parameter.data) for name, parameter in self.hf.named_parameters()]

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
        reference = copy.deepcopy(self, hollow_copies(self.parameters()))
        return reference.requires_grad_(False).eval()


def policy_of(config: RunConfig, ranks: Ranks) -> Policy:
    """The run's policy where this rank needs it. At ZeRO-3 rank 0 alone reads the weights: all get their shares of it.

    A rank whose shapes turn out to be others than rank 0's reads them too: it would wait for what never comes.

    Raises what `load_policy` does.
    """
    if config.zero_stage < 3:
        return load_policy(config.model, config).to(ranks.device)
    # It goes to the device in parts: whole it might not fit.
    policy = load_policy(config.model, config, hollow=not ranks.is_first)
    theirs = ranks.share(outline(policy).encode() if ranks.is_first else None).decode()
    if theirs != outline(policy):
        log.warning("the checkpoint is not quite what its config.json says: every rank reads its weights")
        policy = load_policy(config.model, config)
    return policy


def load_policy(path: str, config: RunConfig, *, hollow: bool = False) -> Policy:
    """Load a checkpoint in the run's dtype. With `hollow` its shapes alone, for a rank that is given the weights.

    Raises:
        ConfigurationError: no such model, one that this learner cannot score with these options, or nothing to freeze
            or adapt by the names given.
    """
    if config.dtype == "float32" and torch.cuda.is_available():
        log.warning(
            "float32 on a GPU: products at a fraction of bfloat16's speed, and twice the memory; set dtype to bfloat16 "
            "unless this is meant"
        )
    try:
        dtype = getattr(torch, config.dtype)
        if hollow:
            hf = hollow_model(path, dtype)
        else:
            hf = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model {path}: {' '.join(str(error).split())[:300]}") from None
    _check_family(path, hf, config)
    _recompute(path, hf, config)
    batch_vision_attention(hf)
    fuse_kernels(hf, config)
    if config.fused_kernels != "none" and torch.cuda.is_available() and hf.config.model_type in FAMILIES:
        attend_by_stretch(hf)
    choose_trainable(hf, config)
    return Policy(hf).train()


def _recompute(path: str, hf: Any, config: RunConfig) -> None:
    """Let the backward pass compute activations again: everywhere, or in the vision tower alone."""
    if not config.gradient_checkpointing:
        return
    part = hf
    if config.gradient_checkpointing == "vision":
        family = FAMILIES.get(hf.config.model_type)
        if family is None:
            raise ConfigurationError(
                f"model {path} is a {hf.config.model_type}, whose vision tower is not known here; "
                "gradient_checkpointing takes true or false for it"
            )
        part = getattr(hf.model, family.vision_tower)
    part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _check_family(path: str, hf: Any, config: RunConfig) -> None:
    """Say how rows of this model will be laid out, or that they cannot be."""
    family = hf.config.model_type
    check_adapter_family(config, family)
    if family in FAMILIES:
        return
    if not hasattr(hf, "model") or hf.get_output_embeddings() is None:
        raise ConfigurationError(
            f"model {path} is a {family}, whose hidden states and output matrix are not where they are expected; "
            f"families known to work are {', '.join(FAMILIES)}"
        )
    if getattr(hf.config, "image_token_id", None) is None:
        raise ConfigurationError(
            f"model {path} is a {family}, whose configuration names no image_token_id, so images cannot be found in "
            f"its prompts; families known to work are {', '.join(FAMILIES)}"
        )
    require_known_layout(config, family)
    log.warning(
        "the learner does not know this family's layout: every completion is scored in a padded row of its own, which "
        "costs several times the work",
        family=family,
        known=", ".join(FAMILIES),
    )


class PromptEncoder:
    """Text and images to what the model takes. The same processor as the engine's, so both see one prompt.

    Raises:
        ConfigurationError: the processor does not load, or has no bounds of pixels and the run sets them.
    """

    def __init__(self, path: str | Path, policy: Policy, config: RunConfig) -> None:
        self.config = policy.hf.config
        self.family = FAMILIES.get(self.config.model_type)
        self.processor = load_processor(path, self.config.model_type, config)
        self.image_token_id: int = self.config.image_token_id
        self.pad_token_id: int = self.processor.tokenizer.pad_token_id or 0
        self.sizes = ImageSizes(policy.hf)
        model = policy.hf.model

        def rope_index(token_ids: Tensor, is_image: Tensor, grid: Tensor | None) -> Tensor:
            positions: Tensor = model.get_rope_index(
                input_ids=token_ids, mm_token_type_ids=is_image, image_grid_thw=grid
            )[0]
            return positions

        self._positions = PositionCache(rope_index)
        self._dtype: torch.dtype = policy.hf.dtype

    def another(self) -> PromptEncoder:
        """The same for another thread: its own processor, for a tokenizer cannot be used by two at once.

        One of 150,000 words takes half a second and 32 MB to copy.
        """
        other = copy.copy(self)
        other.processor = copy.deepcopy(self.processor)
        return other

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        return forbidden_tokens(self.config)

    def encode(self, text: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        """Tokenise, expand placeholders, and make the images' tensors, pixels in the policy's dtype.

        Raises:
            ConfigurationError: the processor makes another number of placeholders than the model makes features.
        """
        encoded = self.processor(text=[text], images=list(images) or None, return_tensors="pt")
        token_ids = tuple(encoded["input_ids"][0].tolist())
        shape = encoded["input_ids"].shape
        beside = {k: v for k, v in encoded.items() if k not in _TEXT_INPUTS and isinstance(v, Tensor)}
        visual = {
            name: tensor.to(self._dtype) if tensor.is_floating_point() else tensor
            for name, tensor in beside.items()
            if tensor.shape != shape
        }
        self.sizes.check(token_ids, visual)
        if self.family is None:
            token_types = {name: tensor[0] for name, tensor in beside.items() if name not in visual}
            return EncodedPrompt(token_ids, None, visual, token_types=token_types)
        return EncodedPrompt(token_ids, self._count(token_ids, visual, self.family), visual, self.family.image_axis)

    def _count(self, token_ids: tuple[int, ...], visual: dict[str, Tensor], family: Family) -> Tensor:
        """Positions of the prompt's tokens: [3, P] or [P]."""
        if family.mrope:
            return self._positions.positions(token_ids, self.image_token_id, visual.get("image_grid_thw"))
        return torch.arange(len(token_ids))


def load_processor(path: str | Path, model_type: str, config: RunConfig) -> Any:
    """The model's processor under the run's bounds.

    Raises:
        ConfigurationError: it does not load, or has no bounds of pixels and the run sets them.
    """
    bounds = pixel_bounds(config, model_type)
    try:
        return AutoProcessor.from_pretrained(path, **bounds)
    except (ImportError, OSError, ValueError) as error:
        raise ConfigurationError(f"processor of model {path}: {' '.join(str(error).split())[:300]}") from None
