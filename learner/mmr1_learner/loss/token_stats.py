"""Log-probability, entropy and divergence from the reference of chosen tokens, straight from hidden states, in chunks.

A 152k vocabulary never exists as a full [tokens, vocabulary] tensor: each chunk's logits are made, reduced and thrown
away, the reference's beside the policy's, and made again in the backward pass. That pass is written out by hand, so the
output embedding's gradient is one tensor that the chunks add to. The distribution is the sampler's: the same bias on
forbidden tokens, then the same temperature. What the numbers are for is not known here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# What the sampler adds to the logits of forbidden tokens, before the temperature. The engine's bias is bounded to 100.
FORBIDDEN_BIAS = -100.0
CHUNK_TOKENS = 1024


class TokenStats(NamedTuple):
    """Float32, or float64 where the hidden states are. The last two are None without a reference."""

    logprobs: Tensor  # [N] of the chosen tokens
    entropy: Tensor  # [N] in nats
    ref_logprobs: Tensor | None = None  # [N] the reference's of the chosen tokens, without gradient
    kimifull: Tensor | None = None  # [N] KL(policy || reference) over the whole vocabulary, in nats


class Projection(NamedTuple):
    """What a model's logits are made of. A tuple: ZeRO-3 looks for the tensors of what a module returns."""

    hidden: Tensor  # [N, H] final hidden states, each at the position that predicts its target
    head: Tensor  # [V, H] output embedding


def token_stats(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperatures: Tensor,
    forbidden: Tensor,
    chunk_tokens: int = CHUNK_TOKENS,
    reference: Projection | None = None,
) -> TokenStats:
    """Score `targets` under the tempered, masked distribution, and the same under the reference's.

    Args:
        hidden: [N, H] final hidden states, each at the position that predicts its target.
        head: [V, H] output embedding.
        targets: [N] token ids.
        temperatures: [N], each above 0.
        forbidden: [K] token ids that the sampler never draws.
        chunk_tokens: tokens whose logits exist at one time.
        reference: of the model to measure the divergence from; no gradient flows into it.
    """
    ref_hidden, ref_head = (reference.hidden.detach(), reference.head.detach()) if reference else (None, None)
    columns = _ChunkedStats.apply(  # type: ignore[no-untyped-call]
        hidden, head, targets, temperatures, forbidden, chunk_tokens, ref_hidden, ref_head
    )
    return TokenStats(*columns)


class _ChunkedStats(torch.autograd.Function):
    """Gradients flow to `hidden` and `head`. z: the tempered, biased logits; p = softmax(z); q: the reference's.

    d lp / dz = onehot - p;  d H / dz = -p (log p + H);  d KL / dz = p (log p - log q - KL).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        temperatures: Tensor,
        forbidden: Tensor,
        chunk_tokens: int,
        ref_hidden: Tensor | None,
        ref_head: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy, ref_logprobs, kimifull = hidden.new_empty(4, len(targets), dtype=dtype).unbind()
        for start in range(0, len(targets), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            chosen = targets[part, None]
            logp = _logits(hidden[part], head, temperatures[part], forbidden).log_softmax(1)  # [n, V]
            logprobs[part] = logp.gather(1, chosen)[:, 0]
            p = logp.exp()
            if ref_hidden is None or ref_head is None:
                entropy[part] = -p.mul_(logp).sum(1)
            else:
                entropy[part] = -(p * logp).sum(1)
                logq = _logits(ref_hidden[part], ref_head, temperatures[part], forbidden).log_softmax(1)
                ref_logprobs[part] = logq.gather(1, chosen)[:, 0]
                kimifull[part] = p.mul_(logp.sub_(logq)).sum(1)
                del logq
            del logp, p  # before the next chunk's are made
        ctx.save_for_backward(hidden, head, targets, temperatures, forbidden, ref_hidden, ref_head, entropy, kimifull)
        ctx.chunk_tokens = chunk_tokens
        ctx.set_materialize_grads(False)
        if ref_hidden is None:
            return logprobs.clone(), entropy.clone(), None, None
        ctx.mark_non_differentiable(ref_logprobs)
        return logprobs.clone(), entropy.clone(), ref_logprobs, kimifull.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, head, targets, temperatures, forbidden, ref_hidden, ref_head, entropy, kimifull = ctx.saved_tensors
        g_logprob, g_entropy, _, g_kimifull = grads
        g_logprob = torch.zeros_like(entropy) if g_logprob is None else g_logprob
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        for start in range(0, len(targets), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            warmth, g_chosen = temperatures[part, None], g_logprob[part, None]
            # The slope is p times these, and g_chosen more at the chosen token. A [n, 1] is the same for every token.
            factor = -g_chosen
            if g_entropy is None and g_kimifull is None:  # the distribution alone is needed, and not its logarithm
                p = _logits(hidden[part], head, temperatures[part], forbidden).softmax(1)  # [n, V]
            else:
                logp = _logits(hidden[part], head, temperatures[part], forbidden).log_softmax(1)
                p = logp.exp()
                if g_kimifull is not None and ref_hidden is not None and ref_head is not None:
                    logq = _logits(ref_hidden[part], ref_head, temperatures[part], forbidden).log_softmax(1)
                    divergence = logq.neg_().add_(logp).sub_(kimifull[part, None]).mul_(g_kimifull[part, None])
                    factor = divergence.add_(factor)
                    del logq, divergence
                if g_entropy is not None:
                    factor = logp.add_(entropy[part, None]).mul_(-g_entropy[part, None]).add_(factor)
                del logp
            slope = _slope(p, factor, g_chosen, targets[part, None], warmth, hidden.dtype)
            del p, factor
            grad_hidden[part] = slope @ head
            if grad_head is not None:
                grad_head.addmm_(slope.T, hidden[part])
            del slope  # before the next chunk's is made
        return grad_hidden, grad_head, None, None, None, None, None, None


def _slope(p: Tensor, factor: Tensor, g_chosen: Tensor, chosen: Tensor, warmth: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, V] of the logits before bias and temperature: p * factor, g_chosen more at `chosen`, over the temperature."""
    warmth = warmth.to(p.dtype)
    there = factor if factor.shape == g_chosen.shape else factor.gather(1, chosen)
    at_chosen = (p.gather(1, chosen) * there + g_chosen) / warmth
    slope = p if p.dtype == dtype else p.new_empty(p.shape, dtype=dtype)
    if factor.shape == g_chosen.shape:
        torch.mul(p, factor / warmth, out=slope)
    else:
        torch.div(p.mul_(factor), warmth, out=slope)
    return slope.scatter_(1, chosen, at_chosen.to(dtype))


def _logits(hidden: Tensor, head: Tensor, temperatures: Tensor, forbidden: Tensor) -> Tensor:
    """[n, V] as the sampler has them: biased, then tempered. At least float32. The caller may overwrite them.

    A large vocabulary's are many gigabytes to read and to write: each pass over them is a part of the step.
    """
    raw = hidden @ head.T
    dtype = torch.promote_types(raw.dtype, torch.float32)
    warmth = temperatures[:, None].to(dtype)
    biased = (raw[:, forbidden].to(dtype) + FORBIDDEN_BIAS) / warmth
    logits = raw.div_(warmth) if raw.dtype == dtype else raw / warmth
    logits[:, forbidden] = biased
    return logits
