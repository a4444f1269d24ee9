"""Until a step's gradients are launched nothing is read from the device, and nothing of the host's is mixed with it.

On a GPU each reading waits for all that is under way, so that nothing could be launched ahead. Torch's `meta` device
stands for one: what is there cannot be read, and any operation that would wait for it fails. Copies that wait because
their memory is not page-locked are not seen here; tests/gpu/test_running_ahead.py sees those too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmr1_learner import trainer as trainer_file
from mmr1_learner.image_sizes import ImageSizes
from mmr1_learner.model import Policy, PromptEncoder, load_policy
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


Launch = Callable[..., None]


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl"])
def launch(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Takes a step of groups whose images differ in size, until all of it is launched."""
    monkeypatch.setattr(trainer_file, "make_engine", Descent)
    monkeypatch.setattr(trainer_file, "TrainingState", lambda *_: None)
    model = tmp_path / "model"
    model.mkdir()
    build(request.param, model)
    groups = groups_with_images(tmp_path, [56, 84, 120, 56])

    def step(**options: Any) -> None:
        config = small_config(
            model, image_root=str(tmp_path), per_device_batch_size=8, gradient_accumulation_steps=2, **options
        )
        policy = load_policy(str(model), config)
        encoder = PromptEncoder(model, policy, config)
        reference = copy.deepcopy(policy) if config.kl else None
        trainer = Trainer(config, Ranks(0, 1, FAR), _far(policy), encoder, reference and _far(reference))
        trainer.while_computing = _launched
        with NothingMixed():
            trainer.step(StepPlan(0, tuple(groups)))

    return step


def _far(policy: Policy) -> Policy:
    there: Policy = policy.to(FAR)
    return there


def _launched(_is_last: bool) -> None:
    raise LaunchedError


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
def test_nothing_is_read_and_nothing_mixed_until_a_step_is_launched(launch: Launch, options: dict[str, Any]) -> None:
    with pytest.raises(LaunchedError):
        launch(**options)


def test_a_model_that_derives_in_its_forward_is_found_out(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageSizes, "arguments", lambda *_: {})
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        launch(kl=[])


def test_indices_that_stay_with_the_host_are_found_out(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmr1_learner import vision_attention

    group = vision_attention._make_groups
    monkeypatch.setattr(vision_attention, "_make_groups", lambda ends, _: group(ends, ends.device))
    with pytest.raises(RuntimeError, match="several devices"):
        launch(kl=[])
