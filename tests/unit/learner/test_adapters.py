"""What is trained is what was asked for, by the names given; the base model is found again without its adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmr1.errors import ConfigurationError
from mmr1_learner.adapters import has_adapters, sources, without_adapters
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.parity import perturbed
from mmr1_learner.rows import Completion, Row, RowBatch, pack
from mmr1_learner.training_state import FORMAT, _check
from tests.models import small_config

LORA = {"lora_rank": 2, "lora_alpha": 6, "lora_target_modules": "q_proj v_proj"}


def policy_of(model: Path, **options: Any) -> Policy:
    return load_policy(str(model), small_config(model, **options)).eval()


def batch_of(model: Path, policy: Policy) -> RowBatch:
    encoder = PromptEncoder(model, policy, small_config(model))
    row = Row(encoder.encode("How many?", []), (Completion((30, 31, 32), (0.0,) * 3, 0.0, 0.0),), 1.0)
    return pack([row], encoder.image_token_id, encoder.pad_token_id)


@pytest.fixture(scope="module")
def adapted(small_model: Path) -> Policy:
    """With adapters that add something: B is drawn too."""
    policy = policy_of(small_model, **LORA)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return policy


def test_only_adapters_are_trained_and_only_where_they_were_asked_for(adapted: Policy) -> None:
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all(".q_proj.lora_" in name or ".v_proj.lora_" in name for name in trained)
    assert has_adapters(adapted)


def test_merged_weights_score_as_the_adapters_do(adapted: Policy, small_model: Path) -> None:
    """What a weight update sends, put into a plain model, gives the learner's own log-probabilities."""
    plain = policy_of(small_model)
    batch = batch_of(small_model, plain)
    with torch.no_grad():
        untouched, learner = plain(batch).logprobs, adapted(batch).logprobs
        parameters = dict(plain.hf.named_parameters())
        merged = {source.name: source.merged() for source in sources(adapted.hf)}
        assert list(merged) == list(parameters)
        for name, tensor in merged.items():
            parameters[name].copy_(tensor)
        sampler = plain(batch).logprobs
        with without_adapters(adapted):
            reference = adapted(batch).logprobs
        again = adapted(batch).logprobs
    assert (learner - untouched).abs().max() > 1e-3, "these adapters say nothing: the test could see nothing"
    torch.testing.assert_close(sampler, learner, atol=1e-5, rtol=0)
    assert torch.equal(reference, untouched) and torch.equal(again, learner)


def test_the_gates_perturbation_is_of_the_base_model(adapted: Policy) -> None:
    """A scaled adapter that is still zero would change nothing, and the gate would refuse to start."""
    with perturbed(adapted, "language_model") as name:
        assert "lora_" not in name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_target_modules": "q_porj"}, "no linear layer q_porj; it has .*q_proj"),
        ({"lora_target_modules": "lm_head"}, "lm_head cannot have an adapter"),
        ({"lora_target_modules": "qkv", "freeze_vision_tower": True}, "all in the vision tower"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(small_model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        policy_of(small_model, **{**LORA, **options})


def test_a_frozen_tower_gets_no_adapters(small_model: Path) -> None:
    names = {"lora_target_modules": "down_proj"}  # a name of both towers
    both = dict(policy_of(small_model, **{**LORA, **names}).named_parameters())
    one = dict(policy_of(small_model, **{**LORA, **names}, freeze_vision_tower=True).named_parameters())
    assert any("lora" in name and ".visual." in name for name in both)
    assert any("lora" in name for name in one) and not any("lora" in name and ".visual." in name for name in one)


def test_a_state_of_other_tensors_or_another_version_is_refused() -> None:
    index = {"format": FORMAT, "names": ["master/a", "master/b"]}
    _check(index, {"master/a", "master/b"}, Path("step-000002/engine"))
    with pytest.raises(ConfigurationError, match=r"step-000002 holds other tensors .* \(1, first master/c\)"):
        _check(index, {"master/a", "master/b", "master/c"}, Path("step-000002/engine"))
    with pytest.raises(ConfigurationError, match="another version of the learner"):
        _check({"format": 0}, set(), Path("step-000002/engine"))
