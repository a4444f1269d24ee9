"""On a GPU the learner's kernels compute what transformers' own layers do: values, gradients, and in copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmr1.families import FAMILIES
from mmr1.weight_plan import word_sums
from mmr1_learner import turn_kernel
from mmr1_learner.fused_kernels import fuse_kernels
from mmr1_learner.fused_vision import _turn
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.rows import Completion, Row, RowBatch, pack
from mmr1_learner.vision_attention import TOWERS_WITH_SIZES
from tests.family_models import PLACEHOLDERS, build
from tests.models import small_config
from tests.unit.learner.test_fused_kernels import Gated
from tests.unit.learner.test_rows import picture

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True, scope="module")
def whole_float32() -> Iterator[None]:
    """As the learner has it (ranks.py). Ten bits in convolutions round what hardly differs to what differs a lot."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


# Of the largest: rounding in another order. Bfloat16 keeps 8 bits.
TOLERANCES = {"float32": 1e-5, "bfloat16": 3e-2}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, folder)
    (folder / "family").write_text(request.param)
    return folder


def batch_of(model: Path, policy: Policy) -> RowBatch:
    encoder = PromptEncoder(model, policy, small_config(model))
    text = (
        f"<|im_start|>user\n{PLACEHOLDERS[(model / 'family').read_text()]}How many?<|im_end|>\n<|im_start|>assistant\n"
    )
    completions = tuple(Completion(ids, (0.0,) * len(ids), 1.0, 1.0) for ids in ((40, 41, 42), (43, 44)))
    row = Row(encoder.encode(text, [picture(0, 112, 84)]), completions, 1.0)
    return pack([row], encoder.image_token_id, encoder.pad_token_id)


def score(policy: Policy, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
    policy.zero_grad()
    logprobs = policy(batch.to(CUDA, policy.hf.dtype)).logprobs
    logprobs.sum().backward()
    grads = {name: part.grad.float() for name, part in policy.named_parameters() if part.grad is not None}
    return logprobs.detach().float(), grads


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_values_and_gradients(model: Path, dtype: str, record: Callable[..., None]) -> None:
    off, on = (
        load_policy(str(model), small_config(model, dtype=dtype, fused_kernels=option)).to(CUDA)
        for option in ("none", "liger")
    )
    batch = batch_of(model, off)
    (expected, theirs), (found, ours) = score(off, batch), score(on, batch)
    apart = float((found - expected).abs().max() / expected.abs().max())
    norm = sum(float(grad.norm()) ** 2 for grad in theirs.values()) ** 0.5
    off_by = sum(float((ours[name] - grad).norm()) ** 2 for name, grad in theirs.items()) ** 0.5 / norm
    record(family=(model / "family").read_text(), dtype=dtype, logprobs=apart, gradient=off_by)
    assert ours.keys() == theirs.keys() and apart < TOLERANCES[dtype] and off_by < TOLERANCES[dtype]


def test_vision_layers_go_to_the_kernel_that_turns_heads(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or nothing here would notice that they were left as they are."""
    turned: list[int] = []
    turn = turn_kernel.turn_on_gpu
    monkeypatch.setattr(turn_kernel, "turn_on_gpu", lambda *given: (turned.append(given[-1]), turn(*given)))
    policy = load_policy(str(model), small_config(model, fused_kernels="liger")).to(CUDA)
    score(policy, batch_of(model, policy))
    if (model / "family").read_text() not in TOWERS_WITH_SIZES:
        return
    layers = len(policy.hf.model.visual.blocks)
    assert turned.count(1) == layers  # and back for each length of windows
    assert turned.count(-1) == 2 * turned.count(0) >= 2 * layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [72, 80, 128])
def test_heads_are_turned_as_the_definition_has_it(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    windows, length, heads = 5, 64, 16
    cos, sin = torch.randn(2, windows * length, width, device=CUDA)
    projected = torch.randn(windows * length, 3, heads, width, device=CUDA).to(dtype)
    gradient = torch.randn(windows, heads, length, width, device=CUDA).to(dtype).transpose(1, 2)
    for given in (projected[:, 1].unflatten(0, (windows, length)), gradient):
        for way in (1, -1, 0):
            found = torch.zeros_like(projected)
            turn_kernel.turn_on_gpu(given, found[:, 2], cos, sin, way)
            expected = torch.zeros(projected.shape, dtype=dtype)
            _turn(given.cpu(), expected[:, 2], cos.cpu(), sin.cpu(), way)
            scale = float(expected.abs().max()) * torch.finfo(dtype).eps
            assert float((found.cpu() - expected).abs().max()) <= (2 * scale if way else 0.0)
    both, before = projected[:, :2].flatten(1, 2), projected.clone()
    turn_kernel.turn_on_gpu(both[None], both, cos, sin, 1)
    assert torch.equal(projected[:, 2], before[:, 2]) and not torch.equal(projected[:, :2], before[:, :2])


def test_a_copy_follows_its_own_weights(model: Path) -> None:
    policy = load_policy(str(model), small_config(model, fused_kernels="liger")).to(CUDA)
    batch = batch_of(model, policy).to(CUDA, torch.float32)
    reference = policy.frozen_copy()
    with torch.no_grad():
        before = reference(batch).logprobs
        for part in policy.parameters():
            part.mul_(1.5)
        assert torch.equal(reference(batch).logprobs, before)
        assert not torch.equal(policy(batch).logprobs, before)


@pytest.mark.parametrize("inner", [3420, 3424])
def test_a_layer_that_is_filled_up(tmp_path: Path, inner: int) -> None:
    torch.manual_seed(0)
    plain: Any = Gated(64, inner).to(CUDA)
    fused = copy.deepcopy(plain)
    fuse_kernels(fused, small_config(tmp_path, fused_kernels="liger"))
    x = torch.randn(100, 64, device=CUDA)
    for layer in (plain, fused):
        layer(x).square().sum().backward()
    torch.testing.assert_close(fused(x), plain(x), atol=1e-5, rtol=1e-5)
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 1e-5 * theirs.grad.norm(), name


@pytest.mark.parametrize("sizes", [[64, 8, 4096], [0, 16, 0, 8, 0], [8 * 8192, 8 * 8193, 8, 8 * 40_000], [1, 7, 13, 3]])
def test_fingerprints_by_the_kernel_are_those_of_the_definition(sizes: list[int]) -> None:
    flat = torch.randint(0, 256, (sum(sizes),), dtype=torch.uint8)
    for _ in range(2):  # the second time with what the first has remembered
        assert word_sums(flat.cuda(), sizes).tolist() == word_sums(flat, sizes).tolist()
