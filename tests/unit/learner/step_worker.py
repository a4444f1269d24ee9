"""One learner rank for test_trainer.py: trains one step on the groups it is given and saves its parameters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from mmr1_learner.model import PromptEncoder, load_policy
from mmr1_learner.plan import StepPlan
from mmr1_learner.ranks import join_ranks
from mmr1_learner.trainer import Trainer
from tests.models import small_config


def main() -> None:
    folder, model, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    config = small_config(model, **options)
    ranks = join_ranks()
    policy = load_policy(str(model), config)
    trainer = Trainer(config, ranks, policy, PromptEncoder(model, policy, config), policy.frozen_copy())
    plan = StepPlan.decode(ranks.share((folder / "plan").read_bytes() if ranks.is_first else None))
    report = trainer.step(plan)
    if ranks.is_first:
        torch.save({"parameters": dict(trainer.policy.named_tensors()), "report": report}, folder / "result.pt")
    ranks.barrier()


main()
