"""Adapters sent alone to the real server: it samples with them, keeps its base weights, and refuses what is not right.
One engine for the whole file, driven by the learner's own sender over a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError, WeightUpdateError
from mmr1.images import ImageStore
from mmr1.records import Group, Sampling
from mmr1.rollout_client import RolloutClient
from mmr1_learner import weights
from mmr1_learner.published import Published
from mmr1_learner.weights import WeightSender
from tests.e2e.adapter_learner import RANKS, AdapterLearner, adapter_options
from tests.e2e.reference_policy import ReferencePolicy, draw_images, image_prompt
from tests.e2e.rollout_process import WEIGHTS, RolloutServer
from tests.models import small_config

pytestmark = pytest.mark.engine
RUN = "adapters"
BOUND = 1e-4


class Learner(AdapterLearner):
    """One that also asks Hugging Face's model."""

    def __init__(self, config: RunConfig, reference: ReferencePolicy, images: ImageStore, url: str) -> None:
        super().__init__(config, url, lambda client, probe: [self.ask(client, 0, probe=probe)], BOUND)
        self.reference, self.images = reference, images

    def ask(self, client: RolloutClient, image: int, temperature: float = 1.0, *, probe: bool = False) -> Group:
        sampling = Sampling(temperature, 12, forbidden_token_ids=self.reference.forbidden, ignore_eos=True)
        return client.generate(image_prompt(self.images, image, sampling, run=RUN), timeout=60, probe=probe)

    def worst_difference(self) -> float:
        """Against Hugging Face's own model with merged weights; each image twice, so that caches would answer."""
        merged = self.published.state()
        parameters = dict(self.reference.model.named_parameters())
        assert merged.keys() == parameters.keys()
        for name, tensor in merged.items():
            parameters[name].data.copy_(tensor)
        client = self.client()
        groups = [self.ask(client, image, heat) for heat in (1.0, 0.7) for image in (0, 1, 2, 0, 1, 2)]
        return max(self.reference.largest_difference(group, self.images) for group in groups)


@pytest.fixture(scope="module")
def learner(small_model: Path, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learner]:
    """With adapters on some parts of fused layers and on all of others."""
    images = draw_images(tmp_path_factory.mktemp("images"), 3)
    options: dict[str, Any] = {
        "run": RUN,
        "model": str(small_model),
        "train_file": str(images.root / "train.json"),
        "num_steps": 1,
        "per_device_batch_size": 8,
        "num_generations": 4,
        "max_prompt_length": 512,
        "max_completion_length": 32,
        "redis_url": redis_server,
        "max_num_seqs": 32,
        **adapter_options("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"),
    }
    server = RolloutServer(tmp_path_factory.mktemp("server"), **options)
    config = small_config(**{**options, "model": small_model}, lease_seconds=5.0)
    learner = Learner(config, ReferencePolicy(small_model), images, redis_server)
    server.wait_healthy(WEIGHTS)
    yield learner
    learner.sender.close()
    server.terminate()


def num_bytes(tensors: list[tuple[str, torch.Tensor]]) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in tensors)


def test_adapters_alone_bring_a_server_to_each_version(learner: Learner, capsys: pytest.CaptureFixture[str]) -> None:
    adapters, base = num_bytes(learner.published.named_adapters()), num_bytes(learner.published.base_tensors())
    first = learner.update()
    assert first.num_bytes == base + 2 * adapters, "the base with planted adapters, then the policy's own"
    assert learner.worst_difference() < BOUND
    client = learner.client()
    seconds = []
    for seed in (1, 2):
        before = learner.ask(client, 1)
        learner.draw(seed)
        result = learner.update()
        assert learner.scorer.compare([before]).max_abs_dlogp > 100 * BOUND, "these adapters say nothing new"
        assert result.num_bytes == adapters < base / 10
        assert learner.worst_difference() < BOUND
        seconds.append(result.seconds)
    assert learner.sender.behind(learner.version, lambda: None) == []
    whole = Published(learner.published.policy, RANKS, learner.config.weight_bucket_bytes)
    whole.refresh()
    sender = WeightSender(learner.config, learner.queue, whole, "127.0.0.1")
    learner.sender.close()
    learner.update(sender)
    merged = learner.update(sender)
    sender.close()
    with capsys.disabled():
        print(f"\nmerged: {merged.num_bytes} bytes, {merged.seconds:.2f} s; ", end="")
        print(f"adapters: {adapters} bytes, {min(seconds):.2f} s; both with their probe")
    learner.update()  # a group anew: the merged weights of before must not stay under the adapters
    assert learner.worst_difference() < BOUND


def test_a_corrupted_adapter_is_refused(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner.update()
    collective = learner.sender._collective
    assert collective is not None
    monkeypatch.setattr(weights, "_ATTEMPTS", 1)
    send = collective.send

    def flip(data: torch.Tensor) -> None:
        data[5] ^= 1
        send(data)

    with monkeypatch.context() as context:
        context.setattr(collective, "send", flip)
        learner.draw(3)
        with pytest.raises(WeightUpdateError, match=r"1 with other bytes, first: base_model\.model\..*lora_A\.weight"):
            learner.update()
    learner.update()
    assert learner.worst_difference() < BOUND


def test_what_fingerprints_cannot_see_the_probe_does(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters that arrive as they were sent, and are not those that the learner scores with."""
    learner.update()
    monkeypatch.setattr(weights, "_ATTEMPTS", 1)
    own = learner.published._adapters
    learner.published._adapters = {name: tensor * 1.5 for name, tensor in own.items()}
    with pytest.raises(WeightUpdateError, match="from the learner's"):
        learner.update()
    learner.published._adapters = own
    learner.update()
    assert learner.worst_difference() < BOUND


def test_a_probe_that_sees_no_planted_adapters_is_refused(learner: Learner) -> None:
    learner.sender.close()
    with pytest.raises(ConfigurationError, match="wrong adapters could not be seen"):
        learner.sender.update(learner.version, learner.probe, lambda: None, lambda _: 0.0)
    learner.update()


def test_adapters_without_their_base_are_refused(learner: Learner) -> None:
    """A group anew forgets what the last one brought: its learner may be another."""
    learner.update()
    learner.sender.close()
    [member] = learner.sender.wait_for_servers(1, lambda: None)
    learner.sender._form_group((member,), lambda: None)
    client = learner.sender._client(member)
    with pytest.raises(grpc.RpcError) as caught:
        client.start_weight_update(learner.version, 5.0, adapter_only=True)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "StartAdapterUpdate before the group's base weights" in caught.value.details()
    learner.sender.close()
    learner.update()
    assert learner.worst_difference() < BOUND
