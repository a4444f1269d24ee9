"""What torch's kernel for sequences of unlike length computes, written out: to compare, and where there is no GPU."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, ends_seen: Tensor, *rest: float
) -> tuple[Tensor, Tensor]:
    seen, log_sums = torch.empty_like(query), query.new_empty(query.shape[1::-1], dtype=torch.float32)
    for own, others in _sequences(ends, ends_seen):
        scores, _, values = _scores(query[own], key[others], value[others], *rest)
        log_sums[:, own] = scores.logsumexp(-1)
        seen[own] = (scores.softmax(-1) @ values).transpose(0, 1).to(seen.dtype)
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
    *rest: float,
) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    scale = rest[-1]
    for own, others in _sequences(ends, ends_seen):
        scores, keys, values = _scores(query[own], key[others], value[others], *rest)
        probabilities = (scores - log_sums[:, own, None]).exp()
        above = grad[own].transpose(0, 1).float()
        share = (above * seen[own].transpose(0, 1)).sum(-1, keepdim=True)
        of_scores = probabilities * (above @ values.mT - share) * scale
        of_query[own] = (of_scores @ keys).transpose(0, 1).to(query.dtype)
        shape = (key.shape[1], -1, len(key[others]), key.shape[2])  # the heads that share a key
        of_key[others] = (of_scores.mT @ query[own].transpose(0, 1).float()).view(shape).sum(1).transpose(0, 1).to(key)
        of_value[others] = (probabilities.mT @ above).view(shape).sum(1).transpose(0, 1).to(value)
    return of_query, of_key, of_value


def _sequences(ends: Tensor, ends_seen: Tensor) -> list[tuple[slice, slice]]:
    pairs = zip(pairwise(ends.tolist()), pairwise(ends_seen.tolist()), strict=True)
    return [(slice(*own), slice(*others)) for own, others in pairs]


def _scores(
    query: Tensor, key: Tensor, value: Tensor, longest: int, longest_seen: int, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """[heads, L, S] of one sequence; keys and values repeated for the heads that share them, in float32."""
    assert len(query) <= longest and len(key) <= longest_seen
    shared = query.shape[1] // key.shape[1]
    queries = query.transpose(0, 1).float()
    keys, values = (part.transpose(0, 1).float().repeat_interleave(shared, 0) for part in (key, value))
    scores = queries @ keys.mT * scale
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return scores, keys, values
