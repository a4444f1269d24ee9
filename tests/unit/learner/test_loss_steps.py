"""A step in several forwards, on several ranks and in several updates, by the learner's own trainer on a real model.

DeepSpeed's engine is replaced by plain gradient descent, so that every gradient can be looked at.
"""

from __future__ import annotations

import copy
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmr1.images import ImageStore
from mmr1.records import Group
from mmr1_learner import trainer as trainer_file
from mmr1_learner.model import Policy, PromptEncoder
from mmr1_learner.plan import StepPlan
from mmr1_learner.ranks import Ranks
from mmr1_learner.rows import RowBatch
from mmr1_learner.trainer import Trainer
from tests.models import small_config, small_policy
from tests.unit.learner.test_trainer import groups_with_images

ALL_TERMS: dict[str, Any] = {"kl": ["k1", "k3", "kimikl", "kimifull"], "entropy_reg": True}


class Descent:
    """Stands where DeepSpeed's engine does, and keeps the gradients of each step."""

    def __init__(self, config: Any, policy: Policy) -> None:
        self.module = policy
        self.optimizer = torch.optim.SGD(policy.parameters(), lr=config.learning_rate)
        self.gradients: list[Tensor] = []

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        pass

    def zero_optimization_stage(self) -> int:
        return 0

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.gradients.append(flat_gradient(self.module))
        self.optimizer.step()
        self.optimizer.zero_grad()


def flat_gradient(policy: Policy) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


class Alone(Ranks):
    """One of several ranks whose others are looked at by themselves."""

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        return dict(values)


class Setting:
    """A model, a reference that differs from it, and three groups of random answers and rewards."""

    def __init__(self, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trainer_file, "make_engine", Descent)
        monkeypatch.setattr(trainer_file, "TrainingState", lambda *_: None)  # DeepSpeed's, to be saved
        self.model, self.folder = model, folder
        self.groups: list[Group] = groups_with_images(folder, [56, 84, 56])
        self.policy, self.reference = small_policy(model), small_policy(model, seed=1)
        self.rates: list[float] = []  # of the optimizer, when each rank had taken its step

    def step(self, world_size: int = 1, at: int = 0, **options: Any) -> tuple[list[Tensor], list[dict[str, float]]]:
        """The gradients of each update, as DeepSpeed would average them, and every rank's report."""
        config = small_config(
            self.model, image_root=str(self.folder), learner_processes=world_size, **{"learning_rate": 0.05, **options}
        )
        gradients, reports = [], []
        for rank in range(world_size):
            policy = copy.deepcopy(self.policy)
            encoder = PromptEncoder(self.model, policy, config)
            ranks = Alone(rank, world_size, torch.device("cpu"))
            trainer = Trainer(config, ranks, policy, encoder, self.reference)
            reports.append(trainer.step(StepPlan(at, tuple(self.groups))))
            gradients.append(trainer.engine.gradients)
            self.rates += [group["lr"] for group in trainer.engine.optimizer.param_groups]
        return [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)], reports


@pytest.fixture
def setting(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(small_model, tmp_path, monkeypatch)


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "kimi"])
def test_forwards_and_ranks_add_up_to_one_forward(objective: str, setting: Setting) -> None:
    """Twelve answers at once, and over two ranks in three forwards each, of which one is a dummy."""
    options = {"objective": objective, "importance_correction": "sequence_mask", "sequence_mask_bound": 8.0}
    (whole,), (report,) = setting.step(per_device_batch_size=12, **options, **ALL_TERMS)
    (parts,), reports = setting.step(
        world_size=2, per_device_batch_size=2, gradient_accumulation_steps=2, **options, **ALL_TERMS
    )
    assert whole.abs().max() > 0
    assert (whole - parts).norm() < 1e-4 * whole.norm()
    for name in (name for name in report if name.endswith("loss") or name == "num_tokens"):
        assert sum(other[name] for other in reports) == pytest.approx(report[name], rel=1e-4), name


def test_a_loss_is_the_mean_over_updates_and_the_norm_their_largest(setting: Setting) -> None:
    """Two halves of six answers, the policy all but still: their losses' mean is the loss of all twelve at once."""
    options = {"kl": [], "importance_correction": "none", "learning_rate": 1e-12, "aggregation": "constant"}
    _, (whole,) = setting.step(per_device_batch_size=12, **options)
    gradients, (halves,) = setting.step(per_device_batch_size=12, num_updates_per_batch=2, **options)
    assert whole["loss"] != 0 and halves["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert halves["policy_loss"] == pytest.approx(halves["loss"])
    assert halves["grad_norm"] == pytest.approx(max(float(gradient.norm()) for gradient in gradients), rel=1e-4)


def test_one_forward_at_a_time_is_on_the_device(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's pixels wait in the host's memory: of what was moved, the forward before may still be there."""
    moved: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    original = RowBatch.to

    def to(batch: RowBatch, device: torch.device, dtype: torch.dtype) -> RowBatch:
        there = original(batch, device, dtype)
        if threading.current_thread() is not threading.main_thread():
            return there  # it is made ready in the host's memory
        calls = tuple(replace(call, images={k: v.clone() for k, v in call.images.items()}) for call in there.calls)
        moved.extend(weakref.ref(call.images["pixel_values"]) for call in calls)
        alive.append(sum(pixels() is not None for pixels in moved))
        return replace(there, calls=calls)

    monkeypatch.setattr(RowBatch, "to", to)
    _, (report,) = setting.step(
        per_device_batch_size=2, gradient_accumulation_steps=6, num_updates_per_batch=2, **ALL_TERMS
    )
    assert len(alive) == 9 and report["loss"] != 0  # six forwards, three of which are scored before
    assert max(alive) <= 2


def test_the_second_update_measures_from_where_the_batch_began(setting: Setting) -> None:
    """Half of the answers each: the second half's ratio is against the policy before the first, and is clipped."""
    options = {"kl": [], "clip_low": 0.02, "clip_high": 0.02, "importance_correction": "none"}
    gradients, (report,) = setting.step(per_device_batch_size=12, num_updates_per_batch=2, **options)
    assert len(gradients) == 2 and report["clip_fraction"] > 0
    assert report["ratio_p01"] < 1 < report["ratio_p99"]

    config = small_config(setting.model, image_root=str(setting.folder), num_updates_per_batch=2, **options)
    config = config.model_copy(update={"per_device_batch_size": 12, "learning_rate": 0.05})
    policy = copy.deepcopy(setting.policy)
    trainer = Trainer(
        config, Alone(0, 1, torch.device("cpu")), policy, PromptEncoder(setting.model, policy, config), None
    )
    plan = StepPlan(0, tuple(setting.groups))
    (updates,) = trainer_file.cut(plan, config, 1)
    prompts = trainer._batcher.encode(plan, [forward for update in updates for forward in update])
    first, second = (trainer._batcher.pack(plan, update[0], prompts) for update in updates)
    old = policy(second).logprobs.detach()
    for batch, before, expected in ((first, None, gradients[0]), (second, old, gradients[1])):
        lp = policy(batch).logprobs
        rho = torch.exp(lp - (lp.detach() if before is None else before))
        bounded = rho.clamp(0.98, 1.02)
        loss = -(batch.weights * torch.minimum(rho * batch.advantages, bounded * batch.advantages)).sum()
        loss.backward()
        found = flat_gradient(policy)
        assert (found - expected).norm() < 1e-4 * expected.norm()
        trainer.engine.optimizer.step()
        policy.zero_grad()


def entropies(setting: Setting, group: Group) -> list[Tensor]:
    """The plain way: each answer by itself, every logit kept, the group's own mask and temperature."""
    encoder = PromptEncoder(setting.model, setting.policy, small_config(setting.model))
    images = [ImageStore(setting.folder).open(image) for image in group.prompt.images]
    prompt, sampling, found = encoder.encode(group.prompt.text, images), group.prompt.sampling, []
    for rollout in group.rollouts:
        ids = torch.tensor([prompt.token_ids + rollout.token_ids])
        is_image = (ids == encoder.image_token_id).long()
        with torch.no_grad():
            logits = setting.policy.hf(input_ids=ids, mm_token_type_ids=is_image, **prompt.images).logits[0]
        logits = logits[len(prompt.token_ids) - 1 : -1]
        logits[:, list(sampling.forbidden_token_ids)] = -1e9
        found.append(torch.distributions.Categorical(logits=logits / sampling.temperature).entropy())
    return found


def test_the_loss_sees_each_group_at_its_own_temperature_and_under_its_own_mask(setting: Setting) -> None:
    """Sampled in three steps of a schedule, and trained on in one."""
    forbidden = tuple(range(200, 260))
    for index, temperature in enumerate((0.4, 1.0, 1.7)):
        group = setting.groups[index]
        sampling = replace(group.prompt.sampling, temperature=temperature, forbidden_token_ids=forbidden)
        setting.groups[index] = replace(group, prompt=replace(group.prompt, sampling=sampling))
    _, (report,) = setting.step(per_device_batch_size=12)
    expected = torch.cat([each for group in setting.groups for each in entropies(setting, group)])
    assert report["entropy"] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_a_batch_moves_the_parameters_by_the_rate_of_its_step(setting: Setting) -> None:
    """The third of four steps, of a rate that has risen in one and falls to 0 in three."""
    curve = {"lr_scheduler": "linear", "warmup_steps": 1, "num_steps": 4}
    _, (report,) = setting.step(at=2, per_device_batch_size=12, **curve)
    assert report["learning_rate"] == pytest.approx(0.05 * 2 / 3) == setting.rates[-1]
