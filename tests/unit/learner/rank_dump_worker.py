"""A learner rank for test_rank_dumps.py: plants faults in steps of several ranks, and tells what each came to."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from mmr1.records import Group
from mmr1_learner.engine import _has_overflow
from mmr1_learner.errors import NonFiniteLossError
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.plan import StepPlan
from mmr1_learner.ranks import Ranks, join_ranks
from mmr1_learner.reference import reference_of
from mmr1_learner.trainer import Trainer
from tests.models import small_config
from tests.unit.learner.dump_worker import not_a_number


def spoil(policy: Policy) -> None:
    """One matrix gets a gradient that is no number, from a loss that is one."""
    weight = policy.hf.model.language_model.layers[0].self_attn.o_proj.weight
    weight.register_hook(lambda gradient: gradient * math.inf)


def run(folder: Path, model: Path, ranks: Ranks, groups: list[Group], scenario: dict[str, Any]) -> str:
    """Two steps, the second with the fault. Returns the error."""
    name, fault = scenario["name"], scenario["fault"]
    config = small_config(
        model,
        run_dir=str(folder / name),
        image_root=str(folder),
        per_device_batch_size=2,
        gradient_accumulation_steps=4,
        num_generations=4,
        learning_rate=1e-3,
        **scenario["options"],
    ).for_world_size(ranks.world_size)
    policy = load_policy(str(model), config)
    reference = reference_of(config, policy)
    if fault == "gradient":
        spoil(policy)
    trainer = Trainer(config, ranks, policy, PromptEncoder(model, policy, config), reference)
    if config.zero_stage == 2:
        asked = trainer.engine.optimizer.has_overflow_partitioned_grads_serial
        assert asked.func is _has_overflow, "DeepSpeed asks each gradient by itself"
    try:
        if fault != "gradient":
            trainer.step(StepPlan(0, tuple(groups)))
        trainer.step(StepPlan(1, tuple(not_a_number(groups) if fault == "logprob" else groups)))
    except NonFiniteLossError as error:
        return str(error)
    return ""


def main() -> None:
    folder, model, scenarios = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    ranks = join_ranks()
    groups = list(StepPlan.decode((folder / "plan").read_bytes()).groups)
    results = {scenario["name"]: run(folder, model, ranks, groups, scenario) for scenario in scenarios}
    (folder / f"results-{ranks.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
