"""On a GPU, the language model's attention in shared rows without a mask: prompts once, completions beside them.

In a shared row a completion sees its prompt and itself, which as a mask makes the kernel compute every pair of tokens
and throw more than half away. Here each stretch of a row, a prompt or a completion, attends within itself, and all
completions of a prompt attend to it; both by torch's kernel for sequences of unlike length. Two softmaxes over parts
are one over the whole when each is weighted by its share of the denominator (Milakov and Gimelshein 2018, "Online
normalizer calculation for softmax", section 3), so the result is the mask's to rounding. Which token belongs to whom
comes with the call; this file knows no losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import is_flash_attention_available
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmr1_learner.stretches import Stretches

# No "flash" in it: transformers would hand the mask over in another form.
NAME = "prefix_by_stretch"
_STRETCHES = "_mmr1_stretches"  # of what stands for the mask
_WIDEST, _MULTIPLE = 256, 8  # heads that the kernel takes, in elements
_OLDEST = (8, 0)  # a GPU's generation
# Language models that were tried. Others may read in their layers what kind of attention or mask they have.
_KNOWN = ("llama", "qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")


def attend_by_stretch(hf: Any) -> None:
    """Have the language model of a Hugging Face model attend this way where it is given stretches, else as it did.

    One that is not known here attends by mask as ever.
    """
    if hf.get_decoder().config.model_type not in _KNOWN:
        return
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    for module in hf.get_decoder().modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = NAME


def takes_stretches(hf: Any) -> bool:
    """Whether the kernel can do the model's attention where the model is and as it is."""
    config = hf.get_decoder().config
    if getattr(config, "_attn_implementation", None) != NAME:
        return False
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        hf.device.type == "cuda"
        and torch.version.hip is None
        and is_flash_attention_available()
        and torch.cuda.get_device_capability(hf.device) >= _OLDEST
        and hf.dtype in (torch.bfloat16, torch.float16)
        and width <= _WIDEST
        and width % _MULTIPLE == 0
        and not getattr(config, "attention_dropout", 0.0)
    )


def in_place_of_mask(stretches: Stretches, dtype: torch.dtype) -> Tensor:
    """[1, 1, 1, 1], which a model hands to its layers as it is, with the stretches on it; no number, if it is read."""
    mask = torch.full((1, 1, 1, 1), torch.nan, dtype=dtype, device=stretches.ends.device)
    mask.__dict__[_STRETCHES] = stretches
    return mask


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Of queries [B, heads, L, D], keys and values [B, fewer heads, L, D]; returns [B, L, heads, D]."""
    stretches = None if attention_mask is None else attention_mask.__dict__.get(_STRETCHES)
    if stretches is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found
    if dropout or options.get("position_bias") is not None:
        raise RuntimeError("attention by stretch has no dropout and no position bias: set fused_kernels to none")
    batch, heads, length, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    flat = (part.transpose(1, 2).reshape(batch * length, -1, width) for part in (query, key, value))
    seen: Tensor = _Stretched.apply(*flat, stretches, scale)  # type: ignore[no-untyped-call]
    return seen.view(batch, length, heads, width), None


class _Stretched(torch.autograd.Function):
    """Of queries [T, heads, D], keys and values [T, fewer heads, D] what each token sees, [T, heads, D].

    The backward pass of a part needs of the whole the result and the softmax's denominator alone: given these, each
    kernel makes the probabilities and gradients of its own pairs (Dao et al. 2022, "FlashAttention", algorithm 4).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, by: Stretches, scale: float) -> Tensor:
        seen, log_sums = attend(query, key, value, by.ends, by.ends, by.longest, by.longest, True, scale)
        beside, log_sums_beside = attend(
            query.index_select(0, by.asking), key.index_select(0, by.asked), value.index_select(0, by.asked),
            by.asking_ends, by.asked_ends, by.most_asking, by.most_asked, False, scale,
        )  # fmt: skip
        own = log_sums.index_select(1, by.asking)
        both = torch.logaddexp(own, log_sums_beside)
        share, share_beside = ((part - both).exp_().t().unsqueeze(-1) for part in (own, log_sums_beside))
        merged = seen.index_select(0, by.asking).float().mul_(share).addcmul_(beside.float(), share_beside)
        seen.index_copy_(0, by.asking, merged.to(seen.dtype))
        log_sums.index_copy_(1, by.asking, both)
        ctx.save_for_backward(query, key, value, seen, log_sums)
        ctx.by, ctx.scale = by, scale
        return seen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, seen, log_sums = ctx.saved_tensors
        by, (grad,) = ctx.by, grads
        asking = [part.index_select(0, by.asking) for part in (grad, query, seen)]
        whole = attend_backward(
            grad, query, key, value, seen, log_sums, by.ends, by.ends, by.longest, by.longest, True, ctx.scale
        )
        beside = attend_backward(
            asking[0], asking[1], key.index_select(0, by.asked), value.index_select(0, by.asked), asking[2],
            log_sums.index_select(1, by.asking),
            by.asking_ends, by.asked_ends, by.most_asking, by.most_asked, False, ctx.scale,
        )  # fmt: skip
        for one, more, rows in zip(whole, beside, (by.asking, by.asked, by.asked), strict=True):
            one.index_copy_(0, rows, one.index_select(0, rows).add_(more))
        return *whole, None, None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    ends_seen: Tensor,
    longest: int,
    longest_seen: int,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """What the queries of each sequence see of the keys of the same number, by torch's kernel for a GPU.

    Args:
        query: [T, heads, D]; key, value: [S, fewer heads, D].
        ends: [sequences + 1] int32, boundaries in T; ends_seen: the same in S.

    Returns:
        [T, heads, D], and the logarithms of the softmaxes' denominators [heads, T], float32.
    """
    seen, log_sums, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, ends, ends_seen, longest, longest_seen, 0.0, is_causal, False, scale=scale
    )
    return seen, log_sums


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    log_sums: Tensor,
    ends: Tensor,
    ends_seen: Tensor,
    longest: int,
    longest_seen: int,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values of `attend`, of which `grad` is that of `seen`."""
    unused = torch.empty(0, dtype=torch.uint64, device=query.device)  # a dropout's seed
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), query, key, value, seen, log_sums.contiguous(), ends, ends_seen, longest, longest_seen,
        0.0, is_causal, unused, unused, scale=scale,
    )  # fmt: skip
    return found


__all__ = ["NAME", "attend", "attend_backward", "attend_by_stretch", "in_place_of_mask", "takes_stretches"]
