"""The computing part of `mmr1 replay`: a trainer with a dump's parameters takes the dump's update once more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, ImageStore
from mmr1_learner.dumps import Dump, Found, Update, restore_random_state
from mmr1_learner.errors import NonFiniteLossError
from mmr1_learner.loss import TokenBatch, TokenStats
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.plan import Forward, StepPlan
from mmr1_learner.ranks import Ranks, join_ranks
from mmr1_learner.reference import reference_of
from mmr1_learner.step_watch import StepWatch, group_losses
from mmr1_learner.trainer import Trainer

_ALONE: dict[str, Any] = {
    "zero_stage": 0,
    "offload_optimizer": False,
    "offload_parameters": False,
    "deepspeed_config_file": None,
    "dump_steps": [],
}


class OneOf(Ranks):
    """A rank that stands for itself: it takes its own share of the plan, and its sums are its own."""

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        return dict(values)


class GradientWatch(StepWatch):
    """A watch that takes each group's gradient by itself."""

    gradients: dict[str, float]  # its norm, by prompt id

    def add(self, forward: Forward, stats: TokenStats, tokens: TokenBatch, loss: Tensor) -> None:
        parameters = [parameter for parameter in self._policy.parameters() if parameter.requires_grad]
        for group, part in group_losses(forward, stats, tokens, self._config).items():
            grads = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
            norm = float(torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None]))
            name = str(self._plan.groups[group].prompt.id)
            self.gradients[name] = (self.gradients.get(name, 0.0) ** 2 + norm**2) ** 0.5


class ForwardEngine:
    """In DeepSpeed's place where gradients are taken by hand, which its own engine refuses: forwards and no steps."""

    def __init__(self, engine: Any) -> None:
        self.module, self.optimizer = engine.module, engine.optimizer

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)

    def zero_optimization_stage(self) -> int:
        return 0  # nothing is cut

    def set_gradient_accumulation_boundary(self, _: bool) -> None:
        """There is nothing to accumulate."""

    def backward(self, _: Tensor) -> None:
        """The watch has taken the gradients."""

    def step(self) -> None:
        """The parameters stay what they were."""


def replay(config: RunConfig, dump: Dump) -> tuple[Found, dict[str, float]]:
    """Run the update again. Returns what it came to, and each group's gradient norm if the gradient was at fault.

    Where a group's samples are in several forwards, the second adds norms as if the gradients were orthogonal.

    Raises:
        ConfigurationError: the dump's parameters are not those of `model`, or it holds none.
    """
    # One process holds everything on its device: nothing is cut over ranks. Neither changes what a forward gives.
    config = config.model_copy(update=_ALONE)
    device = join_ranks().device
    ranks = OneOf(dump.rank, dump.world_size, device)
    policy = load_policy(config.model, config).to(device)
    encoder = PromptEncoder(config.model, policy, config)
    reference = reference_of(config, policy)
    parameters = dump.parameters()
    if parameters is None:
        raise ConfigurationError(
            f"{dump.folder} holds no parameters: the optimizer had stepped; its dump.json names the newest "
            "checkpoint of then"
        )
    _put(policy, parameters, dump)
    if reference is not None and reference is not policy and (kept := dump.reference()) is not None:
        _put(reference, kept, dump)
    trainer = Trainer(config, ranks, policy, encoder, reference)
    trainer.watch = StepWatch(config, ranks, reference, keep=False)
    old = dump.update.old_logprobs
    moved = None if old is None else tuple(values.to(device) for values in old)
    update = Update(dump.update.index, moved, dump.update.random_state)
    gradients = {}
    if dump.found.reason.startswith("gradient"):
        gradients = _gradients(trainer, dump, update, GradientWatch(config, ranks, reference, keep=False))
    restore_random_state(update.random_state, device)
    reason, norm = "finite", None
    try:
        norm = trainer.step(dump.plan, only=update).get("grad_norm")
    except NonFiniteLossError as error:
        reason = str(error).partition(": ")[2]
    return trainer.watch.found(reason, norm), gradients


def _gradients(trainer: Trainer, dump: Dump, update: Update, watch: GradientWatch) -> dict[str, float]:
    """Each group's gradient norm, by a pass of its own that leaves the trainer as it was."""
    engine, usual = trainer.engine, trainer.watch
    watch.gradients = {}
    trainer.engine, trainer.watch = ForwardEngine(engine), watch
    trainer.step(dump.plan, only=update)
    trainer.engine, trainer.watch = engine, usual
    return watch.gradients


def check_images(config: RunConfig, plan: StepPlan) -> None:
    """Every image of the plan is where the configuration says, with the bytes that the plan names.

    Raises:
        ConfigurationError: one is not.
    """
    store = ImageStore(config.resolved_image_root)
    for group in plan.groups:
        for image in group.prompt.images:
            try:
                store.open(image)
            except ImageError as error:
                raise ConfigurationError(f"{error}; a replay needs it, below --image_root {store.root}") from None


def _put(policy: Policy, tensors: dict[str, Tensor], dump: Dump) -> None:
    """Overwrite every parameter."""
    named = dict(policy.named_parameters())
    if named.keys() != tensors.keys() or any(named[name].shape != tensors[name].shape for name in named):
        raise ConfigurationError(f"{dump.folder}: its parameters are not those of the model; give it as --model")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[name])
