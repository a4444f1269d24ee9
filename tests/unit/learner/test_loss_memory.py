"""The loss's memory grows with the chunk, not with the tokens: what the CPU allocator hands out is counted."""

from __future__ import annotations

from pathlib import Path

import torch

from mmr1.config import RunConfig
from mmr1_learner.loss import Projection, TokenBatch, compute_loss, token_stats
from tests.models import small_config


def peak_bytes(options: RunConfig, tokens: int, vocabulary: int, hidden_size: int, chunk: int) -> int:
    """Of a forward and a backward pass of the whole loss, beyond its inputs."""
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    head = torch.randn(vocabulary, hidden_size, requires_grad=True)
    reference = Projection(torch.randn(tokens, hidden_size), torch.randn(vocabulary, hidden_size))
    targets, ones, zeros = torch.zeros(tokens, dtype=torch.long), torch.ones(tokens), torch.zeros(tokens)
    batch = TokenBatch(
        rollout_logprobs=zeros,
        old_logprobs=None,
        advantages=ones,
        weights=ones / tokens,
        on_policy=ones,
        in_policy_term=ones,
        in_kimikl=ones,
        sequences=targets,
        num_sequences=1,
    )
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        stats = token_stats(hidden, head, targets, ones, torch.tensor([1]), chunk, reference)
        loss, _ = compute_loss(stats, batch, options)
        loss.backward()
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def test_a_completion_twice_as_long_takes_the_same_memory(tmp_path: Path) -> None:
    """At the vocabulary of Qwen2.5-VL, with every term on, past the chunk."""
    options = small_config(tmp_path, kl=["k1", "k3", "kimikl", "kimifull"], entropy_reg=True)
    vocabulary, chunk = 152_064, 8
    short = peak_bytes(options, 2 * chunk, vocabulary, 16, chunk)
    long = peak_bytes(options, 4 * chunk, vocabulary, 16, chunk)
    chunk_bytes, head_bytes = vocabulary * chunk * 4, vocabulary * 16 * 4
    assert short > chunk_bytes, "the count sees a chunk's logits"
    assert long < 1.05 * short
    assert long < 4 * chunk_bytes + head_bytes + chunk_bytes / 2, "four tensors of a chunk, one gradient of the head"


def test_the_chunks_add_to_one_gradient_of_the_head(tmp_path: Path) -> None:
    """Where the head is larger than a chunk's logits, by far."""
    options = small_config(tmp_path, kl=["kimifull"])
    vocabulary, hidden_size, chunk = 4000, 256, 4
    head_bytes = vocabulary * hidden_size * 4
    assert head_bytes < peak_bytes(options, 8 * chunk, vocabulary, hidden_size, chunk) < 1.2 * head_bytes
