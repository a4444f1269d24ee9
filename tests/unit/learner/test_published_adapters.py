"""Adapters as they are sent: peft's own names, the values of the last refresh, and planted ones that leave no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmr1_learner.export import export
from mmr1_learner.model import PromptEncoder, load_policy
from mmr1_learner.published import Published
from mmr1_learner.published_adapters import PublishedAdapters, publish
from mmr1_learner.ranks import Ranks
from tests.models import small_config

RANKS = Ranks(0, 1, torch.device("cpu"))
OPTIONS = {"lora_rank": 2, "lora_alpha": 6.0, "lora_target_modules": "q_proj down_proj", "freeze_vision_tower": True}


@pytest.fixture
def published(small_model: Path) -> PublishedAdapters:
    """Of adapters that say something: B is drawn too."""
    config = small_config(small_model, lora_updates="adapter", **OPTIONS)
    policy = load_policy(str(small_model), config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, part in policy.named_parameters():
        if "lora_B" in name:
            part.data.copy_(torch.randn(part.shape, generator=generator))
    published = publish(config, policy, RANKS)
    assert isinstance(published, PublishedAdapters)
    published.refresh()
    return published


def test_a_run_without_the_option_publishes_merged_weights(small_model: Path) -> None:
    config = small_config(small_model, **OPTIONS)
    assert type(publish(config, load_policy(str(small_model), config), RANKS)) is Published


def test_what_is_sent_is_what_an_exported_adapter_holds(
    published: PublishedAdapters, small_model: Path, tmp_path: Path
) -> None:
    config = small_config(small_model, lora_updates="adapter", **OPTIONS)
    export(config, published, PromptEncoder(small_model, published.policy, config).processor, tmp_path)
    exported, sent = load_file(tmp_path / "adapter" / "adapter_model.safetensors"), dict(published.named_adapters())
    assert exported.keys() == sent.keys() and all(torch.equal(exported[name], sent[name]) for name in sent)
    spec = published.adapter()
    assert [(one.name, one.shape) for one in spec.tensors] == [(name, tuple(part.shape)) for name, part in sent.items()]
    assert (spec.rank, spec.alpha) == (2, 6.0)
    merged = Published(published.policy, RANKS, bucket_bytes=100_000)
    merged.refresh()
    model = load_policy(str(tmp_path / "model"), small_config(tmp_path / "model"))
    assert all(torch.equal(tensor, merged.state()[name]) for name, tensor in model.named_tensors())
    assert published.manifest() == merged.manifest()


def test_the_base_is_sent_as_it_was_loaded(published: PublishedAdapters, small_model: Path) -> None:
    untouched = dict(load_policy(str(small_model), small_config(small_model)).named_tensors())
    base = dict(published.base_tensors())
    assert list(base) == list(untouched) == [spec.name for spec in published.manifest()]
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in base.items())


def test_what_is_sent_does_not_move_while_it_is_sent(published: PublishedAdapters) -> None:
    name, part = next((n, p) for n, p in published.policy.hf.named_parameters() if "lora_A" in n)
    before = dict(published.named_adapters())
    part.data.mul_(2)
    sent = f"base_model.model.{name.replace('.default', '')}"
    assert torch.equal(dict(published.named_adapters())[sent], before[sent])
    published.refresh()
    assert torch.equal(dict(published.named_adapters())[sent], before[sent] * 2)


def test_planted_adapters_change_each_layer_by_a_fifth_and_go_again(published: PublishedAdapters) -> None:
    own, merged, base = dict(published.named_adapters()), published.state(), dict(published.base_tensors())
    with published.planted():
        planted = published.state()
        assert any(not torch.equal(tensor, own[name]) for name, tensor in published.named_adapters())
    changed = [name for name in base if not torch.equal(planted[name], base[name])]
    assert changed and all(name.endswith(("q_proj.weight", "down_proj.weight")) for name in changed)
    for name in changed:
        share = float((planted[name] - base[name]).norm() / base[name].norm())
        assert 0.1 < share < 0.3, (name, share)
    after = published.state()
    assert all(torch.equal(tensor, after[name]) for name, tensor in merged.items())
    published.refresh()
    assert all(torch.equal(tensor, own[name]) for name, tensor in published.named_adapters())
