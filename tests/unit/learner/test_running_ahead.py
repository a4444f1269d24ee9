"""Until a step's gradients are launched nothing is read from the device, and nothing of the host's is mixed with it.

On a GPU each reading waits for all that is under way, so that nothing could be launched ahead. Torch's `meta` device
stands for one: what is there cannot be read, and any operation that would wait for it fails. Copies that wait because
their memory is not page-locked are not seen here; tests/gpu/test_running_ahead.py sees those too.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmr1_learner import trainer as trainer_file
from mmr1_learner import vision_attention
from mmr1_learner.image_sizes import ImageSizes
from mmr1_learner.model import PromptEncoder, load_policy
from mmr1_learner.plan import StepPlan
from mmr1_learner.ranks import Ranks
from mmr1_learner.trainer import Trainer
from tests.family_models import build
from tests.models import small_config
from tests.unit.learner.ranks_of_a_test import groups_with_images
from tests.unit.learner.test_loss_steps import ALL_TERMS, Descent

FAR = torch.device("meta")
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class LaunchedError(Exception):
    """All of a step's forwards and backwards are under way."""


class NothingMixed(TorchDispatchMode):
    """As a GPU has it: an operation's tensors are on one device, but for copies and single numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor) and leaf.dim()]
        if func not in _COPIES and len({tensor.device for tensor in tensors}) > 1:
            raise RuntimeError(f"{func} of tensors on several devices")
        return func(*args, **(kwargs or {}))


class Setting:
    """A learner on a device, and a step of groups whose images differ in size. DeepSpeed's engine plays no part."""

    def __init__(self, family: str, folder: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trainer_file, "make_engine", Descent)
        monkeypatch.setattr(trainer_file, "TrainingState", lambda *_: None)
        self._model, self._folder, self._device = folder / "model", folder, device
        self._model.mkdir()
        build(family, self._model)
        self.plan = StepPlan(0, tuple(groups_with_images(folder, [56, 84, 120, 56])))

    def trainer(self, **options: Any) -> Trainer:
        """Of two forwards a step."""
        options = {"image_root": str(self._folder), "per_device_batch_size": 8, **options}
        config = small_config(self._model, gradient_accumulation_steps=2, **options)
        policy = load_policy(str(self._model), config)
        encoder = PromptEncoder(self._model, policy, config)
        reference = copy.deepcopy(policy).to(self._device) if config.kl else None
        return Trainer(config, Ranks(0, 1, self._device), policy.to(self._device), encoder, reference)


def launch(trainer: Trainer, plan: StepPlan) -> None:
    """Take a step until all that it computes before its optimizer is launched."""
    trainer.while_computing = _launched
    with pytest.raises(LaunchedError):
        trainer.step(plan)


def _launched(_is_last: bool) -> None:
    raise LaunchedError


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl"])
def setting(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(request.param, tmp_path, FAR, monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        {"kl": []},
        {"kl": [], "gradient_checkpointing": "vision"},
        {"kl": [], "importance_correction": "sequence_mask", "objective": "gspo"},
        ALL_TERMS,
    ],
    ids=["plain", "checkpointing", "sequence_mask", "all_terms"],
)
def test_nothing_is_read_and_nothing_mixed_until_a_step_is_launched(setting: Setting, options: dict[str, Any]) -> None:
    trainer = setting.trainer(**options)
    with NothingMixed():
        launch(trainer, setting.plan)


def test_a_model_that_derives_in_its_forward_is_found_out(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageSizes, "arguments", lambda *_: {})
    trainer = setting.trainer(kl=[])
    with NothingMixed(), pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        trainer.step(setting.plan)


def test_indices_that_stay_with_the_host_are_found_out(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    group = vision_attention._make_groups
    monkeypatch.setattr(vision_attention, "_make_groups", lambda ends, _: group(ends, ends.device))
    trainer = setting.trainer(kl=[])
    with NothingMixed(), pytest.raises(RuntimeError, match="several devices"):
        trainer.step(setting.plan)
