"""What a tower derives from its images' sizes: worked out on the host, to the last bit the same, and not again."""

from __future__ import annotations

import importlib
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers import vision_utils

from mmr1.errors import ConfigurationError
from mmr1_learner.batch_bytes import decode_batch, encode_batch
from mmr1_learner.image_sizes import ON_HOST
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.rows import RowBatch, pack
from tests.family_models import build, prompt_text
from tests.models import small_config
from tests.unit.learner.test_families import rows
from tests.unit.learner.test_rows import picture

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
Model = tuple[str, Policy, PromptEncoder]


@pytest.fixture(scope="module", params=[*QWEN, "llava"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, folder)
    config = small_config(folder)
    policy = load_policy(str(folder), config).eval()
    return request.param, policy, PromptEncoder(folder, policy, config)


def packed(model: Model, ahead: bool) -> RowBatch:
    family, _, encoder = model
    sizes = encoder.sizes if ahead else None
    return pack(rows(family, encoder), encoder.image_token_id, encoder.pad_token_id, sizes=sizes)


def score(model: Model, batch: RowBatch) -> Tensor:
    with torch.no_grad():
        logprobs: Tensor = model[1](batch).logprobs
        return logprobs


def derivations(family: str) -> list[Any]:
    """Patches of every function by which this family's module derives something, to count its work."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    names = [name for name in vars(vision_utils) if name.startswith("get_vision") and hasattr(module, name)]
    assert family not in QWEN or "get_vision_position_ids" in names
    return [mock.patch.object(module, name, _only_hands_over(getattr(module, name))) for name in names]


def _only_hands_over(usual: Any) -> Any:
    """Fails where it would have to work: a function takes what it would make out of `kwargs`."""

    def function(*arguments: Any, kwargs: dict[str, Any], **options: Any) -> Any:
        handed = dict(kwargs)
        made = usual(*arguments, kwargs=kwargs, **options)
        taken = [value for name, value in handed.items() if name not in kwargs]
        assert taken and all(any(part is value for value in taken) for part in _tensors(made)), usual.__name__
        return made

    return function


def _tensors(made: Any) -> list[Tensor]:
    return [part for part in (made if isinstance(made, tuple) else (made,)) if isinstance(part, Tensor)]


def test_a_forward_that_is_handed_all_derives_nothing_and_comes_to_the_same(model: Model) -> None:
    as_usual = score(model, packed(model, ahead=False))
    batch = packed(model, ahead=True)
    call = batch.calls[0]
    assert bool(call.derived) == (model[0] in QWEN)
    assert not call.derived or call.on_host == ON_HOST
    patches = derivations(model[0])
    for patch in patches:
        patch.start()
    try:
        handed = score(model, batch)
    finally:
        for patch in patches:
            patch.stop()
    assert torch.equal(handed, as_usual)


def test_it_goes_to_other_ranks_and_stays_with_the_host(model: Model) -> None:
    batch = packed(model, ahead=True)
    again = decode_batch(encode_batch(batch), torch.device("meta"))
    for ours, theirs in zip(batch.calls, again.calls, strict=True):
        assert theirs.on_host == ours.on_host
        assert theirs.derived.keys() == ours.derived.keys()
        for name, tensor in (theirs.images | theirs.derived).items():
            assert tensor.device.type == ("cpu" if name in ours.on_host else "meta"), name
    assert torch.equal(score(model, decode_batch(encode_batch(batch), torch.device("cpu"))), score(model, batch))


def test_pixels_alone_become_the_policys_type(model: Model) -> None:
    """Weights by which a tower mixes its positions are made in float32 and are used in it."""
    batch = packed(model, ahead=True).to(torch.device("cpu"), torch.bfloat16)
    assert {tensor.dtype for tensor in batch.calls[0].images.values() if tensor.is_floating_point()} == {torch.bfloat16}
    fractions = {name for name, tensor in batch.calls[0].derived.items() if tensor.dtype == torch.float32}
    assert fractions == ({"image_interp_weights"} if model[0] == "qwen3_vl" else set())


def test_a_prompt_with_too_few_placeholders_is_refused_before_its_forward(model: Model) -> None:
    """The forward itself does not count any more."""
    family, _, encoder = model
    prompt = encoder.encode(prompt_text(family, 1), [picture(0, 84, 56)])
    encoder.sizes.check(prompt.token_ids, prompt.images)
    short = tuple(token for token in prompt.token_ids if token != encoder.image_token_id)
    if family not in QWEN:
        encoder.sizes.check(short, prompt.images)  # its forward counts
        return
    with pytest.raises(ConfigurationError, match=r"0 placeholders for the [1-9][0-9]* features"):
        encoder.sizes.check(short, prompt.images)
