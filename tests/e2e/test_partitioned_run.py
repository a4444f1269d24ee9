"""A whole run whose policy no rank has whole: ZeRO-3 over two ranks, with adapters, against the real engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from mmr1.preflight import check_model
from tests.e2e.test_run import digits, lines, options

pytestmark = [pytest.mark.engine, pytest.mark.matrix, pytest.mark.timeout(900)]

NUM_STEPS = 2

__all__ = ["digits"]


@pytest.mark.parametrize("updates", ["merged", "adapter"])
def test_two_ranks_at_stage_three_with_adapters_pass_the_gate_and_the_probes(
    digits: Path, tmp_path: Path, updates: str
) -> None:
    """What vLLM samples with is gathered from both ranks, merged or as adapters; both score its samples together."""
    run_dir, file = tmp_path / "run", tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    config = tmp_path / "run.yaml"
    more = {
        "num_steps": NUM_STEPS,
        "zero_stage": 3,
        "deepspeed_config_file": str(file),
        "lora_rank": 4,
        "lora_updates": updates,
        "freeze_vision_tower": updates == "adapter",
        "parity_prompts": 4,
        "eval_at_start": False,
        "eval_at_end": False,
        "learning_rate": 1e-2,
    }
    config.write_text(yaml.safe_dump(options(digits, run_dir, **more)))
    ended = subprocess.run(
        [sys.executable, "-m", "mmr1.cli", "up", str(config)], capture_output=True, text=True, timeout=800
    )
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    assert len(json.loads((run_dir / "parity.json").read_text())) == 1
    metrics = lines(run_dir / "metrics.jsonl")
    assert [record["step"] for record in metrics] == list(range(1, NUM_STEPS + 1))
    assert all(record["probe_max_abs_dlogp"] < 1e-4 for record in metrics)
    check_model(str(run_dir / "model"))
    adapter = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    assert max(float(tensor.abs().max()) for name, tensor in adapter.items() if "lora_B" in name) > 0
