"""Adapters sent alone, for every family that `mmr1.families` says takes them: the real server applies them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmr1.families import FAMILIES
from mmr1.records import Prompt
from tests.e2e.adapter_learner import AdapterLearner, adapter_options
from tests.e2e.rollout_process import WEIGHTS, RolloutServer
from tests.e2e.test_family_parity import BOUND, prompts
from tests.family_models import build
from tests.models import small_config

pytestmark = [pytest.mark.engine, pytest.mark.matrix]
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.takes_adapters])
def test_a_server_applies_the_learners_adapters(family: str, tmp_path: Path, redis_server: str) -> None:
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' processor of a SmolVLM wants it")
    folder, root = tmp_path / "model", tmp_path / "images"
    root.mkdir()
    build(family, folder)
    options: dict[str, Any] = {
        "run": f"adapters-{family}",
        "model": str(folder),
        "train_file": str(root / "train.json"),
        "num_steps": 1,
        "per_device_batch_size": 8,
        "num_generations": 4,
        "max_prompt_length": 256,
        "max_completion_length": 8,
        "image_root": str(root),
        "redis_url": redis_server,
        "max_num_seqs": 16,
        **adapter_options(*MODULES),
    }
    server = RolloutServer(tmp_path, **options)
    asked: list[Prompt] = []
    config = small_config(**{**options, "model": folder}, lease_seconds=5.0)
    learner = AdapterLearner(
        config, redis_server, lambda client, probe: client.generate_many(asked, timeout=120, probe=probe), BOUND
    )
    asked += prompts(family, root, learner.encoder)
    try:
        server.wait_healthy(WEIGHTS)
        learner.update()
        untouched = learner.sample(learner.client(), False)
        learner.draw(1)
        result = learner.update()
        moved = learner.scorer.compare(untouched).mean_abs_dlogp
    finally:
        learner.sender.close()
        server.terminate()
    assert moved > 10 * BOUND, "these adapters say nothing"
    assert result.probe_max_abs_dlogp is not None
    print(f"\n| {family} | {result.probe_max_abs_dlogp:.1e} |")
