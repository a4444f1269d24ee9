"""However a step's work is cut over forwards, ranks and ZeRO stages, it is the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmr1.images import ImageStore
from mmr1.records import Group, Outcome, PolicyVersion, Rollout, Score
from mmr1_learner.plan import StepPlan, cut
from tests.conftest import REPOSITORY, free_port, make_group, make_prompt
from tests.models import small_config

TEXT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n<|im_start|>assistant\n"


def groups_with_images(root: Path, sizes: list[int]) -> list[Group]:
    """Groups of 4 rollouts of random tokens and rewards, each with an image of its own size."""
    rng = np.random.default_rng(0)
    store = ImageStore(root)
    groups = []
    for position, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 255, (size, 56, 3), dtype=np.uint8)).save(root / f"{position}.png")
        prompt = replace(make_prompt(position, num_generations=4), text=TEXT, images=(store.ref(f"{position}.png"),))
        group = make_group(prompt)
        rollouts = []
        for _ in range(4):
            length = int(rng.integers(1, 7))
            rollouts.append(
                Rollout(
                    token_ids=tuple(int(t) for t in rng.integers(20, 200, length)),
                    logprobs=tuple(float(np.float32(x)) for x in rng.uniform(-7, -5, length)),
                    spans=group.rollouts[0].spans,
                    text="",
                    finish_reason=group.rollouts[0].finish_reason,
                    score=Score(Outcome.OK, float(rng.uniform())),
                )
            )
        groups.append(replace(group, rollouts=tuple(rollouts)))
    return groups


def run_step(folder: Path, model: Path, groups: list[Group], **options: Any) -> dict[str, Any]:
    folder.mkdir()
    (folder / "plan").write_bytes(StepPlan(0, tuple(groups)).encode())
    world_size = options["learner_processes"]
    environment = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, str(Path(__file__).with_name("step_worker.py")), str(folder), str(model)]
    ranks = [
        subprocess.Popen([*command, json.dumps(options)], env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(world_size)
    ]
    try:
        assert [rank.wait(180) for rank in ranks] == [0] * world_size
    finally:  # a rank whose sibling has failed waits for it in a collective, and would outlive the test
        for rank in ranks:
            rank.kill()
            rank.wait()
    result: dict[str, Any] = torch.load(folder / "result.pt", weights_only=True)
    return result


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> tuple[list[Group], dict[str, Any], dict]:
    """Three groups, the options they are trained with, and the step that one rank makes of them in one forward."""
    folder = tmp_path_factory.mktemp("one")
    groups = groups_with_images(folder, [56, 84, 112])
    common = {"image_root": str(folder), "learning_rate": 1e-3, "num_generations": 4}
    step = run_step(folder / "run", small_model, groups, learner_processes=1, per_device_batch_size=16, **common)
    return groups, common, step


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_uneven_ranks_make_the_step_of_one(tmp_path: Path, small_model: Path, one: Any, stage: int) -> None:
    """Three groups over two ranks: forwards differ in rows and images, and the short rank runs a dummy."""
    groups, common, expected = one
    two = run_step(
        tmp_path / "two",
        small_model,
        groups,
        learner_processes=2,
        per_device_batch_size=2,
        gradient_accumulation_steps=4,
        zero_stage=stage,
        **common,
    )
    for name in ("loss", "entropy", "kl_k3", "num_tokens", "grad_norm"):
        assert two["report"][name] == pytest.approx(expected["report"][name], rel=1e-4, abs=1e-7), name
    for name, parameter in expected["parameters"].items():
        # Adam turns a gradient's sign into a full step, so parameters with a gradient near zero may differ by one step.
        difference = (two["parameters"][name] - parameter).abs()
        assert difference.mean() < 2e-5, name


def test_every_rank_runs_the_same_number_of_forwards_and_weights_add_up(tmp_path: Path, small_model: Path) -> None:
    groups = groups_with_images(tmp_path, [56] * 5)
    unscored = replace(groups[0].rollouts[0], score=Score(Outcome.TIMEOUT, None))
    groups[0] = replace(groups[0], rollouts=(unscored, *groups[0].rollouts[1:]))
    config = small_config(small_model, per_device_batch_size=3, gradient_accumulation_steps=4)
    plan = StepPlan(0, tuple(groups))
    for world_size in (1, 2, 3, 7):
        forwards = cut(plan, config, world_size)
        assert len({len(updates[0]) for updates in forwards}) == 1
        samples = [sample for updates in forwards for forward in updates[0] for sample in forward]
        assert all(len(forward) <= 3 for updates in forwards for forward in updates[0])
        live = [sample for sample in samples if sample.weight]
        assert len(live) == 19, "the unscored sample takes no part"
        total = sum(s.weight * len(groups[s.group].rollouts[s.rollout].token_ids) for s in live)
        assert total == pytest.approx(1.0)


def test_a_plan_survives_the_way_to_the_other_ranks(tmp_path: Path) -> None:
    plan = StepPlan(3, tuple(groups_with_images(tmp_path, [56, 56])), version=PolicyVersion(2, 5))
    assert StepPlan.decode(plan.encode()) == plan
    assert StepPlan.decode(StepPlan(4, (), stop=True).encode()).stop
