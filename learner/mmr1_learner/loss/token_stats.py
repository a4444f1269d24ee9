"""Log-probability and entropy of chosen tokens, straight from hidden states, in chunks.

A 152k vocabulary never exists as a full [tokens, vocabulary] tensor: each chunk's logits are made, reduced and thrown
away, and made again in the backward pass. The distribution is the sampler's: the same bias on forbidden tokens, then
the same temperature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# What the sampler adds to the logits of forbidden tokens, before the temperature. The engine's bias is bounded to 100.
FORBIDDEN_BIAS = -100.0
CHUNK_TOKENS = 1024


class TokenStats(NamedTuple):
    logprobs: Tensor  # [N] of the chosen tokens, float32
    entropy: Tensor  # [N] in nats, float32


def token_stats(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperatures: Tensor,
    forbidden: Tensor,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TokenStats:
    """Score `targets` under the tempered, masked distribution.

    Args:
        hidden: [N, H] final hidden states, each at the position that predicts its target.
        head: [V, H] output embedding.
        targets: [N] token ids.
        temperatures: [N], each above 0.
        forbidden: [K] token ids that the sampler never draws.
        chunk_tokens: tokens whose logits exist at one time.
    """
    parts = []
    for start in range(0, hidden.shape[0], chunk_tokens):
        stop = start + chunk_tokens
        arguments = (hidden[start:stop], head, targets[start:stop], temperatures[start:stop], forbidden)
        if torch.is_grad_enabled():
            parts.append(checkpoint(_chunk_stats, *arguments, use_reentrant=False))
        else:
            parts.append(_chunk_stats(*arguments))
    if not parts:
        empty = hidden.new_zeros(0, dtype=torch.float32)
        return TokenStats(empty, empty)
    return TokenStats(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


def _chunk_stats(
    hidden: Tensor, head: Tensor, targets: Tensor, temperatures: Tensor, forbidden: Tensor
) -> tuple[Tensor, Tensor]:
    logits = (hidden @ head.T).float()  # [n, V]
    bias = torch.zeros(logits.shape[-1], device=logits.device)
    bias[forbidden] = FORBIDDEN_BIAS
    logits = (logits + bias) / temperatures[:, None]
    normaliser = torch.logsumexp(logits, dim=-1)  # [n]
    chosen = logits.gather(-1, targets[:, None])[:, 0]
    probabilities = torch.exp(logits - normaliser[:, None])
    entropy = normaliser - (probabilities * logits).sum(-1)
    return chosen - normaliser, entropy
