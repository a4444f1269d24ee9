"""Attention by stretch is attention by mask: values and gradients, of every family, however rows are filled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from mmr1.families import FAMILIES
from mmr1_learner import model as learner_model
from mmr1_learner import prefix_attention
from mmr1_learner.batch_bytes import decode_batch, encode_batch
from mmr1_learner.calls import PADDING, PROMPT, ModelCall, attention_mask
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.prefix_attention import NAME, attend_by_stretch, in_place_of_mask, takes_stretches
from mmr1_learner.rows import Row, RowBatch, pack
from mmr1_learner.stretches import stretches_of
from tests.family_models import build, prompt_text
from tests.models import small_config
from tests.unit.learner import attention_by_definition
from tests.unit.learner.test_rows import completion, picture

CPU = torch.device("cpu")


@pytest.fixture
def by_definition(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes a CPU take stretches; holds how many sequences each call of the kernel had."""
    calls: list[int] = []

    def attend(*given: Any) -> tuple[Tensor, Tensor]:
        calls.append(len(given[3]) - 1)
        return attention_by_definition.attend(*given)

    monkeypatch.setattr(prefix_attention, "attend", attend)
    monkeypatch.setattr(prefix_attention, "attend_backward", attention_by_definition.attend_backward)
    return calls


def lay_out(rows: Sequence[Sequence[Sequence[int]]], length: int) -> tuple[Tensor, Tensor]:
    """Owners and segments of rows of groups, each a prompt's length and its completions'."""
    owners, segments = torch.full((2, len(rows), length), PADDING)
    owner = 0
    for index, groups in enumerate(rows):
        at = 0
        for group in groups:
            for segment, size in enumerate(group):
                owners[index, at : at + size], segments[index, at : at + size] = owner, segment
                at += size
            owner += 1
    return owners, segments


ROWS = {
    "one group": [[(5, 3, 2)]],
    "one token": [[(1, 1)]],
    "a group without completions": [[(3,), (2, 2)], [(4, 1, 1, 1)]],
    "padding, and several groups a row": [[(4, 3, 1), (2, 2)], [(6, 2)], [(1, 1, 1, 1)]],
}


@pytest.mark.parametrize("name", ROWS)
def test_every_pair_that_the_mask_shows_is_computed_once_and_no_other(name: str) -> None:
    rows = ROWS[name]
    owners, segments = lay_out(rows, max(sum(map(sum, groups)) for groups in rows))
    by = stretches_of(owners, segments, PROMPT, PADDING)
    seen = torch.zeros(owners.numel(), owners.numel(), dtype=torch.long)
    for begin, end in pairwise(by.ends.tolist()):
        seen[begin:end, begin:end] += torch.ones(end - begin, end - begin, dtype=torch.long).tril()
        assert end - begin <= by.longest
    for group in range(len(by.asked_ends) - 1):
        asking = by.asking[by.asking_ends[group] : by.asking_ends[group + 1]]
        asked = by.asked[by.asked_ends[group] : by.asked_ends[group + 1]]
        seen[asking[:, None], asked] += 1
        assert len(asking) <= by.most_asking and len(asked) <= by.most_asked
    shown = torch.block_diag(*(attention_mask(owners, segments, torch.float32)[:, 0] == 0).long())
    assert torch.equal(seen, shown)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_the_masks(
    name: str, shared: int, dtype: torch.dtype, by_definition: list[int]
) -> None:
    torch.manual_seed(0)
    rows = ROWS[name]
    owners, segments = lay_out(rows, max(sum(map(sum, groups)) for groups in rows))
    shape = (len(rows), 4, owners.shape[1], 8)
    query, key, value = (
        torch.randn(shape[0], heads, *shape[2:]).to(dtype).requires_grad_() for heads in (4, 4 // shared, 4 // shared)
    )
    call = ModelCall(segments, owners, segments, segments, {}, {}).with_stretches()
    real = (segments != PADDING)[:, :, None, None]
    module = mock.Mock(num_key_value_groups=shared, is_causal=True)
    found = []
    for by_stretch in (True, False):
        mask = call.arguments(dtype, by_stretch)["attention_mask"]
        seen, _ = prefix_attention._attention(module, query, key, value, mask, scaling=0.3)
        assert seen.dtype == dtype
        weighted = (seen.float() * real * torch.arange(8.0)).square().sum()
        found.append((seen * real, *torch.autograd.grad(weighted, (query, key, value))))
    assert len(by_definition) == 2
    for ours, theirs in zip(*found, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
        else:
            assert (ours - theirs).norm() < 3e-2 * theirs.norm()  # 8 bits, on both sides, as in tests/gpu


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' processor of a SmolVLM wants it")
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, folder)
    return request.param, folder


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    yield lambda whether: monkeypatch.setattr(learner_model, "takes_stretches", lambda _: whether)


def batch_of(name: str, folder: Path, policy: Policy) -> RowBatch:
    encoder = PromptEncoder(folder, policy, small_config(folder))
    images: list[list[Any]] = [[picture(0, 84, 56)], [], [picture(1, 56, 112), picture(2, 120, 84)], []]
    completions = tuple(completion(tuple(range(20 + i, 20 + i + length))) for i, length in enumerate((3, 1, 5)))
    rows = [Row(encoder.encode(prompt_text(name, len(some)), some), completions, 0.9) for some in images]
    return pack(rows, encoder.image_token_id, encoder.pad_token_id)


def score(policy: Policy, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
    policy.zero_grad()
    logprobs = policy(batch).logprobs
    (logprobs * torch.arange(len(logprobs))).sum().backward()
    return logprobs.detach(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_family_scores_and_learns_as_with_the_mask(
    family: Any, checkpointing: bool, taken: Callable[[bool], None], by_definition: list[int]
) -> None:
    name, folder = family
    policy = load_policy(str(folder), small_config(folder, gradient_checkpointing=checkpointing))
    batch = batch_of(name, folder, policy)
    expected, theirs = score(policy, batch)
    attend_by_stretch(policy.hf)
    masked, _ = score(policy, batch)
    assert torch.equal(masked, expected) and not by_definition, "where it is given a mask it attends as before"
    taken(True)
    found, ours = score(policy, batch)
    layers = policy.hf.config.get_text_config().num_hidden_layers
    assert len(by_definition) == 2 * layers * (1 + checkpointing), "each layer, and once more where it is recomputed"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert ours.keys() == theirs.keys()
    norm = sum(float(grad.norm()) ** 2 for grad in theirs.values()) ** 0.5
    for part, grad in theirs.items():
        assert float((ours[part] - grad).norm()) < 1e-5 * norm, part


def test_stretches_survive_the_way_to_another_rank(family: Any) -> None:
    name, folder = family
    policy = load_policy(str(folder), small_config(folder))
    batch = batch_of(name, folder, policy)
    again = decode_batch(encode_batch(batch), CPU)
    sent, arrived = batch.calls[0].stretches, again.calls[0].stretches
    assert sent is not None and arrived is not None
    for ours, theirs in zip(sent, arrived, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_padded_rows_have_none(family: Any) -> None:
    """The model makes their mask from theirs, also when it could attend by stretch."""
    name, folder = family
    policy = load_policy(str(folder), small_config(folder)).eval()
    with mock.patch.dict(FAMILIES):
        FAMILIES.clear()
        batch = batch_of(name, folder, load_policy(str(folder), small_config(folder)))
    with torch.no_grad():
        expected = policy(batch).logprobs
        attend_by_stretch(policy.hf)
        assert all(call.stretches is None for call in batch.calls)
        torch.testing.assert_close(policy(batch).logprobs, expected, atol=1e-6, rtol=0)


def test_who_reads_what_stands_for_the_mask_gets_no_numbers() -> None:
    """And not attention to everything."""
    stretches = stretches_of(*lay_out([[(3, 2)]], 5), PROMPT, PADDING)
    mask = in_place_of_mask(stretches, torch.float32)
    part = torch.randn(1, 2, 5, 8)
    lost, _ = prefix_attention._attention(mock.Mock(num_key_value_groups=1), part, part, part, mask.clone())
    assert mask.clone().__dict__ == {} and lost.isnan().all()


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"position_bias": torch.zeros(1, 2, 5, 5)}])
def test_what_it_does_not_do_is_an_error(options: dict[str, Any]) -> None:
    mask = in_place_of_mask(stretches_of(*lay_out([[(3, 2)]], 5), PROMPT, PADDING), torch.float32)
    part = torch.randn(1, 2, 5, 8)
    with pytest.raises(RuntimeError, match="fused_kernels"):
        prefix_attention._attention(mock.Mock(num_key_value_groups=1), part, part, part, mask, **options)


def test_a_language_model_that_was_not_tried_is_left_as_it_is(family: Any) -> None:
    _, folder = family
    policy = load_policy(str(folder), small_config(folder))
    decoder = policy.hf.get_decoder().config
    decoder.model_type = "another"
    attend_by_stretch(policy.hf)
    assert decoder._attn_implementation == "sdpa" and not takes_stretches(policy.hf)


def test_who_takes_them(family: Any) -> None:
    _, folder = family
    policy = load_policy(str(folder), small_config(folder, dtype="bfloat16"))
    decoder = policy.hf.get_decoder().config
    assert decoder._attn_implementation == "sdpa", "on a CPU nothing is changed"
    attend_by_stretch(policy.hf)
    assert decoder._attn_implementation == NAME
    assert policy.hf.config.vision_config._attn_implementation != NAME
    assert not takes_stretches(policy.hf), "a CPU has no such kernel"
    there = mock.Mock(dtype=torch.bfloat16, device=torch.device("cuda"), get_decoder=policy.hf.get_decoder)
    newest = mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0))
    with newest, mock.patch.object(prefix_attention, "is_flash_attention_available", return_value=True):
        assert takes_stretches(there)
        for what, value in (("dtype", torch.float32), ("device", CPU)):
            with mock.patch.object(there, what, value):
                assert not takes_stretches(there)
        with mock.patch.object(decoder, "attention_dropout", 0.1):
            assert not takes_stretches(there)
    with mock.patch.object(torch.cuda, "get_device_capability", return_value=(7, 5)):
        assert not takes_stretches(there)
