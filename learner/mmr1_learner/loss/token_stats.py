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
    bias = torch.zeros(head.shape[0], device=hidden.device).index_fill_(0, forbidden, FORBIDDEN_BIAS)
    ref_hidden, ref_head = (reference.hidden.detach(), reference.head.detach()) if reference else (None, None)
    columns = _ChunkedStats.apply(  # type: ignore[no-untyped-call]
        hidden, head, targets, temperatures, bias, chunk_tokens, ref_hidden, ref_head
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
        bias: Tensor,
        chunk_tokens: int,
        ref_hidden: Tensor | None,
        ref_head: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy, ref_logprobs, kimifull = hidden.new_empty(4, len(targets), dtype=dtype).unbind()
        for start in range(0, len(targets), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            chosen = targets[part, None]
            logp = _log_distribution(hidden[part], head, temperatures[part], bias)  # [n, V]
            p = logp.exp()
            logprobs[part] = logp.gather(1, chosen)[:, 0]
            entropy[part] = -(p * logp).sum(1)
            if ref_hidden is not None and ref_head is not None:
                logq = _log_distribution(ref_hidden[part], ref_head, temperatures[part], bias)
                ref_logprobs[part] = logq.gather(1, chosen)[:, 0]
                kimifull[part] = p.mul_(logp.sub_(logq)).sum(1)
                del logq
            del logp, p  # before the next chunk's are made
        ctx.save_for_backward(hidden, head, targets, temperatures, bias, ref_hidden, ref_head, entropy, kimifull)
        ctx.chunk_tokens = chunk_tokens
        ctx.set_materialize_grads(False)
        if ref_hidden is None:
            return logprobs.clone(), entropy.clone(), None, None
        ctx.mark_non_differentiable(ref_logprobs)
        return logprobs.clone(), entropy.clone(), ref_logprobs, kimifull.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, head, targets, temperatures, bias, ref_hidden, ref_head, entropy, kimifull = ctx.saved_tensors
        zero = torch.zeros_like(entropy)
        g_logprob, g_entropy = (zero if grad is None else grad for grad in grads[:2])
        g_kimifull = grads[3]
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        for start in range(0, len(targets), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            logp = _log_distribution(hidden[part], head, temperatures[part], bias)  # [n, V]
            p = logp.exp()
            divergence = None
            if g_kimifull is not None and ref_hidden is not None and ref_head is not None:
                logq = _log_distribution(ref_hidden[part], ref_head, temperatures[part], bias)
                divergence = logq.neg_().add_(logp).sub_(kimifull[part, None]).mul_(g_kimifull[part, None])
                del logq
            slope = logp.add_(entropy[part, None]).mul_(-g_entropy[part, None]).sub_(g_logprob[part, None])
            if divergence is not None:
                slope.add_(divergence)
            slope.mul_(p).scatter_add_(1, targets[part, None], g_logprob[part, None]).div_(temperatures[part, None])
            slope = slope.to(hidden.dtype)
            grad_hidden[part] = slope @ head
            if grad_head is not None:
                grad_head.addmm_(slope.T, hidden[part])
            del logp, p, divergence, slope
        return grad_hidden, grad_head, None, None, None, None, None, None


def _log_distribution(hidden: Tensor, head: Tensor, temperatures: Tensor, bias: Tensor) -> Tensor:
    """[n, V] log-probabilities of every token; the caller may overwrite them."""
    logits = hidden @ head.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits.add_(bias).div_(temperatures[:, None])
    return logits.sub_(logits.logsumexp(1, keepdim=True))
