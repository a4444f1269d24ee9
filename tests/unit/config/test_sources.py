"""Every option can be set from every source, and a value means the same wherever it is written."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from mmr1.config import RunConfig, load_config
from mmr1.errors import ConfigurationError

REQUIRED: dict[str, Any] = {"model": "m", "train_file": "t.json", "num_steps": 3, "per_device_batch_size": 8}

# Where a value made from the type alone would be refused, or would be the default: what to give instead.
TEXTS = {
    "per_device_batch_size": "16",
    "num_generations": "4",
    "learner_processes": "2",
    "top_p": "1.0",
    "temperature_begin": "0.5",
    "temperature_end": "1.5",
    "redis_url": "redis://127.0.0.1:7000/1",
    "lora_target_modules": "q_proj",
    "rewards": "counting=0.2",
    "dump_steps": "3",
    "stop": "</answer>",
    "overlong_buffer": "7",
    "icepop_high": "3",
    "tis_bound": "3",
    "max_restarts": "3",
    "clip_low": "0.1",
    "zero_stage": "3",
    "num_epochs": "2.5",
}
# These contradict others of the first: they are set in a load of their own.
SECOND = ("num_epochs", "lora_rank")
SAME_AS_DEFAULT = {"top_p"}  # no other value is exact


def text_for(name: str) -> str:
    """A value of the option's type, as a command line writes it, that is not the default."""
    field = RunConfig.model_fields[name]
    if name in TEXTS:
        return TEXTS[name]
    annotation: Any = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(argument for argument in get_args(annotation) if argument is not type(None))
    if get_origin(annotation) is list:
        annotation = get_args(annotation)[0]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if get_origin(annotation) is Literal:
        return next(str(choice) for choice in reversed(get_args(annotation)) if choice != default)
    if annotation is bool:
        return "false" if default else "true"
    if annotation is int:
        return str((default or 0) + 1)
    if annotation is float:
        return str((default or 1.0) * 0.5 or 0.5)
    return "other"


def is_list(name: str) -> bool:
    return get_origin(RunConfig.model_fields[name].annotation) is list


def load(tmp_path: Path, document: dict[str, Any], *arguments: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_config(path, arguments)


@pytest.mark.parametrize("second", [False, True])
def test_every_option_is_set_by_a_text_from_every_source(
    second: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = SECOND if second else tuple(name for name in RunConfig.model_fields if name not in SECOND)
    texts = {name: text_for(name) for name in names}
    base = {**REQUIRED, "num_steps": 0} if second else {}
    words = [word for name, text in texts.items() for word in (f"--{name}", text)]
    native = {name: yaml.safe_load(text) for name, text in texts.items() if not is_list(name)}
    native |= {name: [yaml.safe_load(text)] for name, text in texts.items() if is_list(name)}
    found = {
        "command line": load(tmp_path, base, *words),
        "YAML text": load(tmp_path, {**base, **texts}),
        "YAML": load(tmp_path, {**base, **native}),
    }
    for name, text in texts.items():
        monkeypatch.setenv(f"MMR1_{name.upper()}", text)
    found["environment"] = load(tmp_path, base)
    for name in names:
        field = RunConfig.model_fields[name]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        values = {source: getattr(config, name) for source, config in found.items()}
        assert len(set(map(repr, values.values()))) == 1, (name, values)
        assert (values["YAML"] == default) == (name in SAME_AS_DEFAULT), (name, values)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_choice_among_numbers_is_a_number(stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path, REQUIRED, "--zero_stage", str(stage)).zero_stage == stage
    monkeypatch.setenv("MMR1_ZERO_STAGE", str(stage))
    found = load(tmp_path, REQUIRED).zero_stage
    assert found == stage and isinstance(found, int)
    with pytest.raises(ConfigurationError, match=r"zero_stage.*0, 1, 2 or 3 \(given '4'\)"):
        load(tmp_path, REQUIRED, "--zero_stage", "4")
