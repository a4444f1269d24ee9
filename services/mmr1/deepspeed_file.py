"""A user's DeepSpeed configuration: read, compared with the run, and refused where the two contradict each other.

It knows which of DeepSpeed's keys follow from which option. It imports no DeepSpeed and merges nothing by itself.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError

AUTO = "auto"  # how transformers' files say: take what the run derives
_REMOVE = "remove it from the file"

# DeepSpeed 0.19's top-level keys: those that hold an object, and the others. It ignores any other without a word.
OBJECTS = frozenset(
    [
        "activation_checkpointing",
        "aio",
        "autotuning",
        "bf16",
        "bfloat16",
        "checkpoint",
        "comet",
        "comms_logger",
        "compile",
        "csv_monitor",
        "data_efficiency",
        "data_types",
        "datastates_ckpt",
        "expert_parallel",
        "flops_profiler",
        "fp16",
        "hybrid_engine",
        "optimizer",
        "pipeline",
        "scheduler",
        "tensor_parallel",
        "tensorboard",
        "timers",
        "torch_autocast",
        "wandb",
        "weight_quantization",
        "zero_optimization",
    ]
)
SCALARS = frozenset(
    [
        "communication_data_type",
        "data_parallel_size",
        "dataloader_drop_last",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "gradient_accumulation_steps",
        "gradient_allreduce_op",
        "gradient_clipping",
        "gradient_predivide_factor",
        "log_level",
        "managed_gradient_accumulation",
        "memory_breakdown",
        "prescale_gradients",
        "seq_parallel_communication_data_type",
        "sequence_parallel_size",
        "steps_per_print",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "use_data_before_expert_parallelism",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    ]
)


def read_deepspeed_file(config: RunConfig) -> dict[str, Any]:
    """What `deepspeed_config_file` adds to the run, without the keys that merely repeat it; {} when there is none.

    Raises:
        ConfigurationError: no such file, no JSON object, or keys that contradict the run: all of them, in one line.
    """
    path = config.deepspeed_config_file
    if path is None:
        return {}
    document = _read(path)
    _drop_auto(document)
    conflicts = _misshapen(document)
    if not conflicts:
        conflicts = [*_other_values(config, document), *_not_ours(document)]
    if conflicts:
        raise ConfigurationError(f"deepspeed_config_file {path}: {'; '.join(conflicts)}")
    return document


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(
            f"deepspeed_config_file {path}: {error.strerror}; give the path of a JSON file"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"deepspeed_config_file {path} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"deepspeed_config_file {path} must be a JSON object of DeepSpeed's keys")
    return document


def _drop_auto(document: dict[str, Any]) -> None:
    for key, value in list(document.items()):
        if isinstance(value, dict):
            _drop_auto(value)
        elif value == AUTO:
            del document[key]


def _misshapen(document: dict[str, Any]) -> list[str]:
    """Keys that DeepSpeed does not know, and values that are no object where one belongs."""
    wrong = []
    for key, value in document.items():
        if key in OBJECTS and not isinstance(value, dict):
            wrong.append(f"{key} is {json.dumps(value)}; give an object of its keys")
        elif key not in OBJECTS | SCALARS:
            near = difflib.get_close_matches(key, sorted(OBJECTS | SCALARS), n=1)
            wrong.append(f"{key}: DeepSpeed knows no such key; {f'did you mean {near[0]!r}?' if near else _REMOVE}")
    zero = document.get("zero_optimization")
    for key in ("offload_optimizer", "offload_param"):
        if isinstance(zero, dict) and not isinstance(zero.get(key, {}), dict):
            wrong.append(f"zero_optimization.{key} is {json.dumps(zero[key])}; give an object of its keys")
    return wrong


def _other_values(config: RunConfig, document: dict[str, Any]) -> list[str]:
    """Keys that an option decides. One with the option's own value is taken out: the run says it already."""
    world, micro, forwards = config.learner_processes, config.per_device_batch_size, config.gradient_accumulation_steps
    decided: dict[str, tuple[Any, str]] = {
        "train_batch_size": (world * micro * forwards, "per_device_batch_size and gradient_accumulation_steps"),
        "train_micro_batch_size_per_gpu": (micro, "per_device_batch_size"),
        "gradient_accumulation_steps": (forwards, "gradient_accumulation_steps"),
        "gradient_clipping": (config.max_grad_norm, "max_grad_norm"),
        "bf16.enabled": (config.dtype == "bfloat16", "dtype"),
        "bfloat16.enabled": (config.dtype == "bfloat16", "dtype"),
        "zero_optimization.stage": (config.zero_stage, "zero_stage"),
        "zero_optimization.offload_optimizer.device": (_device(config.offload_optimizer), "offload_optimizer"),
        "zero_optimization.offload_param.device": (_device(config.offload_parameters), "offload_parameters"),
    }
    conflicts = []
    for name, (derived, option) in decided.items():
        *parents, key = name.split(".")
        holder: Any = document
        for parent in parents:
            holder = holder.get(parent, {}) if isinstance(holder, dict) else {}
        if not isinstance(holder, dict) or key not in holder:
            continue
        value = holder.pop(key)
        if value != derived:
            conflicts.append(f"{name} is {json.dumps(value)} and the run's is {json.dumps(derived)}; set {option}")
    return conflicts


def _not_ours(document: dict[str, Any]) -> list[str]:
    """Keys that have no place beside the run's own optimizer, schedule and precisions."""
    conflicts = []
    if document.get("optimizer"):
        conflicts.append(f"optimizer: AdamW follows learning_rate, adam_beta1, adam_beta2 and weight_decay; {_REMOVE}")
    if document.get("scheduler"):
        conflicts.append(f"scheduler: the schedule follows lr_scheduler and warmup_steps; {_REMOVE}")
    fp16 = document.get("fp16")
    if isinstance(fp16, dict) and fp16.get("enabled"):
        conflicts.append("fp16.enabled is true; dtype is float32 or bfloat16")
    if document.get("torch_autocast", {}).get("enabled"):
        conflicts.append(f"torch_autocast.enabled is true; the precision is dtype; {_REMOVE}")
    plain = {"prescale_gradients": False, "gradient_predivide_factor": 1.0, "gradient_allreduce_op": "mean"}
    conflicts += [
        f"{key} is {json.dumps(document[key])}; the run weighs its gradients itself; {_REMOVE}"
        for key, value in plain.items()
        if document.get(key, value) != value
    ]
    return conflicts


def _device(offloaded: bool) -> str:
    return "cpu" if offloaded else "none"
