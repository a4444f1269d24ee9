"""Which policies may be scored while a step computes with them, and that the others are scored out of training mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmr1_learner.model import Policy, load_policy
from mmr1_learner.parity import scoring
from mmr1_learner.published import Published
from mmr1_learner.ranks import Ranks
from tests.models import small_config

ADAPTERS = {"lora_rank": 2, "lora_target_modules": ["q_proj"]}


def policy_of(model: Path, **options: Any) -> Policy:
    return load_policy(str(model), small_config(model, **options))


def published(policy: Policy) -> Published:
    return Published(policy, Ranks(0, 1, torch.device("cpu")), 2**20)


def test_a_policy_that_is_one_in_training_and_out_of_it_is_scored_beside(small_model: Path) -> None:
    policy = policy_of(small_model, gradient_checkpointing=True)
    assert not policy.drops_out
    assert published(policy).scores_beside


@pytest.mark.parametrize("options", [ADAPTERS, {**ADAPTERS, "lora_dropout": 0.1}])
def test_adapters_are_switched_off_for_the_reference_and_so_never_scored_beside(
    small_model: Path, options: dict[str, Any]
) -> None:
    policy = policy_of(small_model, **options)
    assert policy.drops_out == ("lora_dropout" in options)
    assert not published(policy).scores_beside


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_attention_that_drops_out_is_seen_in_the_configuration(small_model: Path, part: str) -> None:
    policy = policy_of(small_model)
    getattr(policy.hf.config, part).attention_dropout = 0.1
    assert policy.drops_out
    assert not published(policy).scores_beside


def test_of_a_family_that_is_not_known_neither_is_known(small_model: Path) -> None:
    policy = policy_of(small_model)
    policy.hf.config.model_type = "another"
    assert not published(policy).scores_beside


def test_scoring_leaves_the_mode_of_a_policy_alone_unless_it_drops_out(small_model: Path) -> None:
    """A step that computes beside would see another mode: it recomputes activations in training alone."""
    plain, dropping = published(policy_of(small_model)), published(policy_of(small_model, **ADAPTERS, lora_dropout=0.1))
    with scoring(plain), scoring(dropping):
        assert (plain.training, dropping.training) == (True, False)
    assert (plain.training, dropping.training) == (True, True)


def test_a_model_that_is_not_known_is_scored_out_of_training_mode(small_model: Path) -> None:
    """What it computes otherwise in training, nobody has looked at."""
    policy = policy_of(small_model)
    policy.hf.config.model_type = "another"
    with scoring(published(policy)):
        assert not policy.training
    assert policy.training
