"""Options of the learner's engine that cannot go together, and a user's DeepSpeed file beside them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmr1.adapter_limits import check_adapter_family, engine_rank
from mmr1.deepspeed_file import OBJECTS, SCALARS, read_deepspeed_file
from mmr1.errors import ConfigurationError
from tests.models import small_config

SENT_ALONE = {"lora_updates": "adapter", "lora_rank": 4, "freeze_vision_tower": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload_optimizer": True}, "offload_optimizer needs zero_stage 1, 2 or 3"),
        ({"offload_parameters": True, "zero_stage": 2}, "offload_parameters needs zero_stage 3; zero_stage is 2"),
        ({"ref_sync_steps": 2, "kl": []}, "kl is empty"),
        ({"ref_sync_steps": 2, "lora_rank": 4}, "the base model without adapters and cannot move"),
        ({"lora_rank": 4, "lora_target_modules": ""}, "lora_target_modules is empty"),
        ({"lora_updates": "adapter"}, "needs adapters, and lora_rank is 0; set lora_rank, or leave lora_updates at"),
        ({"lora_updates": "adapter", "lora_rank": 4}, "in the language model alone; set freeze_vision_tower, or leave"),
        ({**SENT_ALONE, "lora_rank": 513}, "vLLM takes ranks up to 512, and lora_rank is 513; lower it, or leave"),
    ],
)
def test_options_that_contradict_each_other_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(Path("model"), **options)


@pytest.mark.parametrize(("rank", "engine"), [(1, 8), (8, 8), (9, 16), (512, 512)])
def test_the_engines_slot_is_the_smallest_that_holds_the_adapters(rank: int, engine: int) -> None:
    assert engine_rank(rank) == engine


def test_adapters_alone_are_refused_for_a_family_that_nobody_has_tested() -> None:
    config = small_config(Path("model"), **SENT_ALONE)
    check_adapter_family(config, "qwen2_5_vl")
    check_adapter_family(small_config(Path("model"), lora_rank=4), "gemma3")
    with pytest.raises(ConfigurationError, match=r"not known to apply adapters to a gemma3, only to qwen2_vl, .*;"):
        check_adapter_family(config, "gemma3")


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
        ({"zero_optimization": 2}, "zero_optimization is 2; give an object of its keys"),
        ({"bf16": True}, "bf16 is true; give an object of its keys"),
        ({"zero_optimization": {"offload_param": None}}, r"zero_optimization.offload_param is null; give an object"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled is true; the precision is dtype; remove it"),
        ({"prescale_gradients": True}, "prescale_gradients is true; the run weighs its gradients itself; remove it"),
        ({"gradient_predivide_factor": 2}, "gradient_predivide_factor is 2; the run weighs its gradients itself"),
        ({"gradient_allreduce_op": "sum"}, 'gradient_allreduce_op is "sum"; the run weighs its gradients itself'),
        ({"zero_optimisation": {}}, "zero_optimisation: DeepSpeed knows no such key; did you mean 'zero_optimization'"),
        ({"qqq": 1}, "qqq: DeepSpeed knows no such key; remove it from the file"),
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


def test_deepspeed_reads_every_key_that_is_let_through() -> None:
    """The list of its keys, against the words in its own source: a key that it drops must go from ours too."""
    package = importlib.util.find_spec("deepspeed")
    assert package is not None and package.submodule_search_locations
    (folder,) = map(Path, package.submodule_search_locations)
    files = [folder / "__init__.py", *folder.rglob("*config.py"), *folder.rglob("*constants.py")]
    text = "\n".join(file.read_text() for file in files)
    words = set(re.findall(r"""["'](\w+)["']""", text))
    assert not (OBJECTS | SCALARS) - words
