"""Starts real learner ranks for a test, and hands back what each of their scenarios left (see step_worker.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmr1.images import ImageStore
from mmr1.records import Group, Outcome, Rollout, Score
from mmr1_learner.plan import StepPlan
from tests.conftest import REPOSITORY, free_port, make_group, make_prompt

TEXT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n<|im_start|>assistant\n"
WORKER = Path(__file__).with_name("step_worker.py")


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


def environment(**variables: str) -> dict[str, str]:
    """What a rank inherits, and `variables`. On a CPU, wherever the tests run, unless DS_ACCELERATOR says cuda."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    device = {} if os.environ.get("DS_ACCELERATOR") == "cuda" else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **device, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def run_ranks(
    folder: Path, model: Path, groups: list[Group], scenarios: list[dict[str, Any]], world_size: int
) -> dict[str, dict[str, Any]]:
    """Rank 0's results by the scenario's name."""
    folder.mkdir(exist_ok=True)
    (folder / "plan").write_bytes(StepPlan(0, tuple(groups)).encode())
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(WORKER), str(folder), str(model), json.dumps(scenarios)]
    wait_for(
        [
            subprocess.Popen(command, env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)))
            for rank in range(world_size)
        ]
    )
    return {s["name"]: torch.load(folder / f"{s['name']}.pt", weights_only=True) for s in scenarios}


def wait_for(processes: list[subprocess.Popen[Any]], seconds: float = 600) -> None:
    """All of them must end well."""
    try:
        assert [process.wait(seconds) for process in processes] == [0] * len(processes)
    finally:  # a rank whose sibling has failed waits for it in a collective, and would outlive the test
        for process in processes:
            process.kill()
            process.wait()


def untied(model: Path, folder: Path) -> Path:
    """A copy whose head has weights of its own, though its configuration ties them to the embedding."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    (embedding,) = (tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
    assert "lm_head.weight" not in tensors
    save_file({**tensors, "lm_head.weight": embedding * 2}, folder / "model.safetensors", {"format": "pt"})
    return folder
