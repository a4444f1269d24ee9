"""A learner rank for test_replay.py: plants faults in steps, and tells what each came to. One process, several runs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmr1.config import RunConfig
from mmr1.records import Group
from mmr1_learner.errors import NonFiniteLossError
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.plan import StepPlan
from mmr1_learner.ranks import Ranks, join_ranks
from mmr1_learner.trainer import Trainer
from tests.models import small_config
from tests.unit.learner.test_trainer import groups_with_images


def not_a_number(groups: list[Group]) -> list[Group]:
    """The last group's first rollout comes with a log-probability that is none."""
    first, *others = groups[-1].rollouts
    broken = replace(first, logprobs=(float("nan"), *first.logprobs[1:]))
    return [*groups[:-1], replace(groups[-1], rollouts=(broken, *others))]


def poison(policy: Policy) -> None:
    """One weight of the last layer, after the reference was copied."""
    policy.hf.model.language_model.layers[-1].mlp.down_proj.weight.data[0, 0] = float("inf")


def steepen(policy: Policy) -> None:
    """The same function and the same loss, but a gradient too large for its norm to be a float."""
    attention = policy.hf.model.language_model.layers[0].self_attn
    attention.v_proj.weight.data *= 1e-25
    attention.v_proj.bias.data *= 1e-25
    attention.o_proj.weight.data *= 1e25


def run(folder: Path, model: Path, ranks: Ranks, name: str) -> dict[str, Any]:
    groups = groups_with_images(folder, [56, 84, 112])
    config: RunConfig = small_config(
        model,
        run_dir=str(folder / name),
        image_root=str(folder),
        per_device_batch_size=4,
        num_updates_per_batch=2,
        learning_rate=1e-3,
        dump_steps=[2] if name == "healthy" else [],
    )
    policy = load_policy(str(model), config)
    trainer = Trainer(config, ranks, policy, PromptEncoder(model, policy, config), policy.frozen_copy())
    trainer.step(StepPlan(0, tuple(groups)))  # the parameters are no longer those of the model's folder
    if name in ("weight", "gradient"):
        {"weight": poison, "gradient": steepen}[name](trainer.policy)
    if name == "logprob":
        groups = not_a_number(groups)
    before = {key: value.clone() for key, value in trainer.policy.named_tensors()}
    try:
        trainer.step(StepPlan(1, tuple(groups)))
        error = ""
    except NonFiniteLossError as raised:
        error = str(raised)
    still = all(torch.equal(before[key], value) for key, value in trainer.policy.named_tensors())
    return {"error": error, "unmoved": still}


def main() -> None:
    folder, model = Path(sys.argv[1]), Path(sys.argv[2])
    ranks = join_ranks()
    results = {name: run(folder, model, ranks, name) for name in ("healthy", "logprob", "weight", "gradient")}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
