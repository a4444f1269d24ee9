"""A forward and its backward are launched without once waiting for the GPU, so the host is ahead of it from then on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmr1_learner.loss import LossReport, TokenBatch, compute_loss
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.rows import RowBatch, pack
from tests.family_models import build
from tests.models import small_config
from tests.unit.learner.test_families import rows

CUDA = torch.device("cuda")


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launch(policy: Policy, batch: RowBatch, folder: Path, report: LossReport) -> Tensor:
    """All that a step does of one forward."""
    placed = batch.to(CUDA, policy.hf.dtype)
    tokens = TokenBatch(
        rollout_logprobs=placed.rollout_logprobs,
        old_logprobs=None,
        advantages=placed.advantages,
        weights=placed.weights,
        on_policy=placed.on_policy,
        in_policy_term=placed.in_policy_term,
        in_kimikl=placed.in_kimikl,
        sequences=placed.sequences,
        num_sequences=placed.num_sequences,
    )
    loss, part = compute_loss(policy(placed), tokens, small_config(folder, kl=""))
    report.merge(part)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("checkpointing", [False, "vision"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_nothing_waits_from_a_batch_to_its_gradients(family: str, checkpointing: bool | str, tmp_path: Path) -> None:
    build(family, tmp_path)
    config = small_config(tmp_path, dtype="bfloat16", gradient_checkpointing=checkpointing)
    policy = load_policy(str(tmp_path), config).to(CUDA)
    encoder = PromptEncoder(tmp_path, policy, config)
    batch = pack(rows(family, encoder), encoder.image_token_id, encoder.pad_token_id, sizes=encoder.sizes).pinned()
    report = LossReport()
    expected = launch(policy, batch, tmp_path, report)  # compiles what is compiled
    torch.cuda.synchronize()
    with waiting_is_an_error():
        found = launch(policy, batch, tmp_path, report)
    assert torch.equal(found, expected)
    assert report.sums["num_tokens"] == 2 * int((batch.weights > 0).sum()) > 0
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchron"):
        found.item()  # the means of telling do tell
