"""Sampler against learner for every family: the real rollout server answers, the learner scores what it sampled.

    python -m pytest tests/e2e/test_family_parity.py -s -q      # prints the table of docs/families.md

One server a family: it is updated to other weights over the wire first, so that names of tensors are compared too.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmr1.families import FAMILIES
from mmr1.images import ImageStore
from mmr1.records import Prompt, PromptId, Sampling
from mmr1_learner.model import PromptEncoder
from mmr1_learner.parity import Scorer, gate
from tests.e2e.rollout_process import WEIGHTS, PlayedLearner, RolloutServer
from tests.family_models import build, prompt_text
from tests.models import small_config, small_policy
from tests.unit.learner.test_rows import picture

pytestmark = [pytest.mark.engine, pytest.mark.matrix]
BOUND = 1e-4  # mean |delta log p| in float32
# (width, height) of each prompt's images: tiles, crops and grids of different shapes.
SIZES: tuple[tuple[tuple[int, int], ...], ...] = ((), ((84, 56),), ((56, 140), (200, 112)))


def draw(root: Path) -> list[tuple[str, ...]]:
    """The images of each prompt, as file names."""
    names = []
    for index, sizes in enumerate(SIZES):
        names.append(tuple(f"{index}-{number}.png" for number in range(len(sizes))))
        for number, (width, height) in enumerate(sizes):
            picture(10 * index + number, width, height).save(root / f"{index}-{number}.png")
    return names


def prompts(family: str, root: Path, encoder: PromptEncoder) -> list[Prompt]:
    store = ImageStore(root)
    sampling = Sampling(0.9, 8, forbidden_token_ids=encoder.forbidden_token_ids, ignore_eos=True)
    return [
        Prompt(
            id=PromptId("families", index),
            text=prompt_text(family, len(names)),
            images=tuple(store.ref(name) for name in names),
            task="counting",
            problem="How many?",
            solution=3,
            num_generations=4,
            sampling=sampling,
        )
        for index, names in enumerate(draw(root))
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampler_and_learner_compute_the_same_model(family: str, tmp_path: Path, redis_server: str) -> None:
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' processor of a SmolVLM wants it")
    folder, root = tmp_path / "model", tmp_path / "images"
    root.mkdir()
    build(family, folder)
    options = {"max_prompt_length": 256, "max_completion_length": 8, "image_root": str(root)}
    server = RolloutServer(
        tmp_path,
        model=str(folder),
        train_file=str(root / "train.json"),
        num_steps=1,
        per_device_batch_size=8,
        num_generations=4,
        run="families",
        redis_url=redis_server,
        max_num_seqs=16,
        **options,
    )
    try:
        policy = small_policy(folder, seed=1).eval()
        config = small_config(folder, **options)
        encoder = PromptEncoder(folder, policy, config)
        server.wait_healthy(WEIGHTS)
        learner = PlayedLearner(server, "families", 1)
        learner.update(SimpleNamespace(named_parameters=policy.named_tensors), 1)
        groups = learner.client.generate_many(prompts(family, root, encoder), timeout=120)
        scorer = Scorer(config, policy, encoder, torch.device("cpu"))
        status = learner.client.status()
        scorer.compare_preprocessing(status.server_id, status.preprocessing)
        report = gate(scorer, policy, groups, BOUND)
    finally:
        server.terminate()
    assert report.num_tokens == 3 * 4 * 8
    print(f"\n| {family} | {report.num_tokens} | {report.mean_abs_dlogp:.1e} | {report.max_abs_dlogp:.1e} |")
