"""Is this the run that a folder's checkpoint belongs to? Asked before a process starts and before weights are read.

A checkpoint remembers what makes its run this one and no other (`identity_of`), and the options that may be changed on
purpose (`options_of`). It knows a checkpoint's state.json by its place and reads one key of it; whether a checkpoint
is whole is the learner's part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel

from mmr1.config.eval_options import EvalConfig
from mmr1.config.objective import ObjectiveOptions
from mmr1.config.optimizer import OptimizerOptions
from mmr1.config.options import ModelOptions, RunConfig, SamplingOptions
from mmr1.config.sft_options import SftConfig
from mmr1.dataset import train_problems
from mmr1.errors import ConfigurationError
from mmr1.model_folder import check_model
from mmr1.reading.problems import digest_of, tasks_of
from mmr1.records import Problem, RewardSpec

log = structlog.get_logger()

_COMMON = ("seed", "task_weights", "system_prompt_template", "question_template")
_OF_A_RUN = ("objective", "num_generations", "reward_scale", "reward_shuffle", "reward_params")
_OF_FINE_TUNING = ("answer_template",)
_EDGE_BYTES = 2**16  # of each weight file, at both ends: enough to tell two trainings of one model apart
_DIGITS = 12
_EVALUATION_FORMAT = 1  # of the answers that an evaluation keeps


def identity_of(config: RunConfig, problems: Sequence[Problem]) -> dict[str, Any]:
    """What a run is: by option, in JSON's own types. None stands for what cannot be known or is not there.

    Raises:
        ConfigurationError: the model is no longer there.
    """
    own = _OF_FINE_TUNING if isinstance(config, SftConfig) else _OF_A_RUN
    identity: dict[str, Any] = {name: getattr(config, name) for name in (*_COMMON, *own)}
    identity |= {"model": _model_digest(config.model), "train_file": _digest(problems)}
    identity["lora_alpha"] = config.lora_alpha if config.lora_rank else None
    if not isinstance(config, SftConfig):
        identity["rewards"] = " ".join(sorted(f"{spec.task}={spec.weight:g}" for spec in _rewards(config, problems)))
    return identity


def options_of(config: RunConfig) -> dict[str, Any]:
    """The options that shape the training and may be another's in a run's next life, in JSON's own types."""
    kinds: list[type[BaseModel]] = [ModelOptions, OptimizerOptions]
    if not isinstance(config, SftConfig):
        kinds += [SamplingOptions, ObjectiveOptions]
    names = {name for kind in kinds for name in kind.model_fields}
    fixed = {*_COMMON, *_OF_A_RUN, *_OF_FINE_TUNING, "model", "rewards", "lora_alpha", "num_epochs"}
    if not isinstance(config, SftConfig):
        names.add("max_off_policy_steps")  # decides which groups are trained on
    return config.model_dump(mode="json", include=names - fixed)


def evaluation_identity(config: EvalConfig, problems: Sequence[Problem], versions: Sequence[str]) -> dict[str, Any]:
    """What an evaluation is: by option, in JSON's own types. `versions` are what running rollout servers hold, if any.

    Raises:
        ConfigurationError: the model is no longer there.
    """
    names = {*ModelOptions.model_fields, *SamplingOptions.model_fields, "eval_mode", "seed"}
    names |= {"system_prompt_template", "question_template"}
    names -= {"model", "num_generations", "temperature_func", "temperature_begin", "temperature_end"}
    identity = config.model_dump(mode="json", include=names)
    identity |= {"temperature": config.evaluation_temperature, "eval_samples": config.num_samples}
    identity |= {"model": _model_digest(config.model), "eval_file": _digest(problems)}
    return {**identity, "rollout_servers": ", ".join(versions) or "its own", "format": _EVALUATION_FORMAT}


def check_same_evaluation(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises ConfigurationError when the answers in `folder` are of another evaluation; all changes in one line."""
    if changed := _differences(before, now):
        listed = "; ".join(f"{name} was {old} and is {new}" for name, (old, new) in changed.items())
        raise ConfigurationError(
            f"{folder} holds answers of another evaluation: {listed}; restore what it was, give another --eval_dir, or "
            "remove that folder"
        )


def check_same_run(config: RunConfig) -> None:
    """Hold the options and the data against what the run's folder remembers. Nothing there: nothing to compare.

    Raises:
        ConfigurationError: they make another run, or one that is past its end; one line with the remedy.
    """
    folder = config.folder if isinstance(config, SftConfig) else config.run_dir
    whose, before, step = _recorded(folder)
    if 0 < config.num_steps < step:
        raise ConfigurationError(
            f"run_dir {config.run_dir}: its checkpoint is of step {step}, past num_steps {config.num_steps}; give "
            "num_steps of at least that, or a new run_dir"
        )
    if not before:
        return
    now = identity_of(config, train_problems(config, check_images=False))
    changed = _differences(before, {name: value for name, value in now.items() if value is not None})
    if changed:
        listed = "; ".join(f"{name} was {old} and is {new}" for name, (old, new) in changed.items())
        raise ConfigurationError(
            f"run_dir {config.run_dir}: its {whose} is of another run: {listed}; restore what it was, or give a new "
            "run_dir"
        )


def say_changed_options(before: dict[str, Any], config: RunConfig) -> None:
    """Name the options that are others than when the checkpoint was written. `before` is empty: they were not kept."""
    changed = _differences(before, options_of(config))
    if changed:
        log.warning(
            "options have changed since the checkpoint: the run goes on with the new ones",
            **{name: f"{old} before, {new} now" for name, (old, new) in changed.items()},
        )


def _rewards(config: RunConfig, problems: Sequence[Problem]) -> Sequence[RewardSpec]:
    """Where all rows are of one task, `task` among the rewards and that task's name are the same run."""
    tasks = list(tasks_of(problems))
    return config.reward_specs_for(tasks[0]) if len(tasks) == 1 else config.reward_specs


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each name that both sides have: one that is missing was not recorded."""
    same = json.loads(json.dumps(now))
    names = [name for name in before if name in same and before[name] != same[name]]
    return {name: (before[name], same[name]) for name in names}


def _recorded(folder: Path) -> tuple[str, dict[str, Any], int]:
    """What remembers the run, its identity and its step; empty and 0 where nothing does, or did not keep it.

    Before the first checkpoint it is run.json, which is written when the queue becomes the run's: the prompts that wait
    there are of that run.
    """
    states = sorted(path for path in (folder / "checkpoints").glob("step-*/state.json") if ".writing" not in str(path))
    try:
        found = json.loads((states[-1] if states else folder / "run.json").read_text())
        identity, step = found.get("identity") or {}, int(found.get("step", 0))
        known = {name: value for name, value in identity.items() if value is not None}
    except (OSError, ValueError, AttributeError, TypeError):
        return "checkpoint", {}, 0  # a damaged checkpoint is named by the learner
    return "checkpoint" if states else "queue", known, step


def _digest(problems: Sequence[Problem]) -> str | None:
    """Texts, solutions, image paths and tasks, in the order in which they are kept. The images' bytes are not read."""
    if not problems:
        return None
    return f"{len(problems)} problems ({digest_of(problems)[:_DIGITS]})"


def _model_digest(model: str) -> str | None:
    """Of the ends of each file that weights are loaded from, wherever they lie; None: on the hub and not here yet."""
    folder = check_model(model)
    if folder is None:
        return None
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.name} {size}".encode() + file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read())
    return f"files {digest.hexdigest()[:_DIGITS]}"


__all__ = [
    "check_same_evaluation",
    "check_same_run",
    "evaluation_identity",
    "identity_of",
    "options_of",
    "say_changed_options",
]
