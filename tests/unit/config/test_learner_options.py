"""Options of the learner's engine that cannot go together, and a user's DeepSpeed file beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmr1.deepspeed_file import read_deepspeed_file
from mmr1.errors import ConfigurationError
from tests.models import small_config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload_optimizer": True}, "offload_optimizer needs zero_stage 1, 2 or 3"),
        ({"offload_parameters": True, "zero_stage": 2}, "offload_parameters needs zero_stage 3; zero_stage is 2"),
        ({"ref_sync_steps": 2, "kl": []}, "kl is empty"),
        ({"ref_sync_steps": 2, "lora_rank": 4}, "the base model without adapters and cannot move"),
        ({"lora_rank": 4, "lora_target_modules": ""}, "lora_target_modules is empty"),
    ],
)
def test_options_that_contradict_each_other_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(Path("model"), **options)


def test_generations_per_step_follow_the_ranks_that_are_there() -> None:
    config = small_config(Path("model"), per_device_batch_size=6, num_generations=4, learner_processes=2)
    assert config.generations_per_step == 12
    four = config.for_world_size(4)
    assert (four.generations_per_step, four.prompts_per_step) == (24, 6)
    with pytest.raises(
        ValueError, match=r"3 learner processes x per_device_batch_size 6 .* = 18 .* nearest valid .* 4, 8"
    ):
        config.for_world_size(3)


def write(folder: Path, document: Any) -> Path:
    path = folder / "ds.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_file_in_agreement_leaves_what_it_adds(tmp_path: Path) -> None:
    """transformers' "auto" and values that the run has anyway are no conflict; the rest goes to DeepSpeed."""
    document = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 8,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": False},
        "optimizer": {},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "offload_optimizer": {"device": "none"}},
        "wall_clock_breakdown": True,
    }
    config = small_config(Path("model"), zero_stage=2, deepspeed_config_file=write(tmp_path, document))
    added = read_deepspeed_file(config)
    assert added["zero_optimization"] == {"reduce_bucket_size": 1000, "offload_optimizer": {}}
    assert added["wall_clock_breakdown"] is True
    assert not {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"} & set(added)
    assert read_deepspeed_file(small_config(Path("model"))) == {}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization.stage is 3 and the run's is 2; set zero_stage"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4 and the run's is 1"),
        ({"train_batch_size": 64}, "train_batch_size is 64 and the run's is 8; set per_device_batch_size"),
        ({"gradient_clipping": 0.5}, "the run's is 1.0; set max_grad_norm"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is true and the run's is false; set dtype"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true; dtype is float32 or bfloat16"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer: AdamW follows learning_rate"),
        ({"scheduler": {"type": "WarmupLR"}}, "the schedule follows lr_scheduler and warmup_steps"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, 'is "nvme" and the run\'s is "none"'),
        ("[1]", "must be a JSON object"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_file_that_contradicts_the_run_is_refused(tmp_path: Path, document: Any, message: str) -> None:
    config = small_config(Path("model"), zero_stage=2, deepspeed_config_file=write(tmp_path, document))
    with pytest.raises(ConfigurationError, match=message) as raised:
        read_deepspeed_file(config)
    assert "\n" not in str(raised.value)


def test_all_conflicts_stand_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, {"gradient_clipping": 2, "scheduler": {"type": "x"}})
    with pytest.raises(ConfigurationError, match=r"gradient_clipping .*; scheduler: "):
        read_deepspeed_file(small_config(Path("model"), deepspeed_config_file=path))
    with pytest.raises(ConfigurationError, match="No such file or directory; give the path of a JSON file"):
        read_deepspeed_file(small_config(Path("model"), deepspeed_config_file=tmp_path / "none.json"))
