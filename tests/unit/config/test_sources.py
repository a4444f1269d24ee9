"""Every option can be set from every source, and a value means the same wherever it is written."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from mmr1.config import RunConfig, load_config
from mmr1.config.eval_options import EvalConfig
from mmr1.config.loading import option_help
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
    "redis_url": "rediss://127.0.0.1:7000/1",
    "lora_target_modules": "q_proj,v_proj",
    "rewards": "counting=1,format=0.2",
    "dump_steps": "3 5",
    "stop": "</answer>, now",
    "overlong_buffer": "7",
    "icepop_high": "3",
    "tis_bound": "3",
    "max_restarts": "3",
    "clip_low": "0.1",
    "zero_stage": "3",
    "num_epochs": "2.5",
    "task_weights": '{"counting": 2, "grounding": 0.5}',
    "reward_params": '{"counting": {"score": "exact"}}',
}
# These contradict others of the first: they are set in a load of their own.
SECOND = ("num_epochs", "lora_rank", "lora_updates", "freeze_vision_tower")
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
    native = {name: text if name == "stop" else yaml.safe_load(text) for name, text in texts.items()}
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


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        ("kl", ["k1,k3", "k1, k3", "k1 k3"], ["k1", "k3"]),
        ("kl", [""], []),
        ("rewards", ["counting=1,format=0.2", "counting=1 format=0.2"], ["counting=1", "format=0.2"]),
        ("trackers", ["wandb,tensorboard", "wandb tensorboard"], ["wandb", "tensorboard"]),
        ("lora_target_modules", ["q_proj,v_proj", "q_proj v_proj"], ["q_proj", "v_proj"]),
        ("dump_steps", ["3,5", "3 5"], [3, 5]),
        ("dump_steps", ["3"], [3]),
        ("stop", ["a, b"], ["a, b"]),
        ("stop", [""], []),
    ],
)
def test_a_list_is_written_alike_everywhere(
    name: str, texts: list[str], value: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in texts:
        assert getattr(load(tmp_path, {**REQUIRED, name: text}), name) == value, f"YAML {text!r}"
        assert getattr(load(tmp_path, REQUIRED, f"--{name}", text), name) == value, f"command line {text!r}"
        with monkeypatch.context() as patch:
            patch.setenv(f"MMR1_{name.upper()}", text)
            assert getattr(load(tmp_path, REQUIRED), name) == value, f"environment {text!r}"
    assert getattr(load(tmp_path, {**REQUIRED, name: value}), name) == value
    assert getattr(load(tmp_path, REQUIRED, f"--{name}", *map(str, value)), name) == value


def test_every_is_another_name_of_eval_every(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path, {**REQUIRED, "every": 5}).eval_every == 5
    assert load(tmp_path, REQUIRED, "--every", "7").eval_every == 7
    assert load(tmp_path, {**REQUIRED, "eval_every": 5}, "--every", "7").eval_every == 7, "the command line wins"
    assert load(tmp_path, {**REQUIRED, "every": 5}, "--eval_every", "7").eval_every == 7
    with pytest.raises(ConfigurationError, match="command line: every is another name of eval_every; give one of the"):
        load(tmp_path, REQUIRED, "--every", "7", "--eval-every", "7")
    with pytest.raises(ConfigurationError, match=r"run\.yaml: every is another name of eval_every"):
        load(tmp_path, {**REQUIRED, "every": 5, "eval_every": 5})
    monkeypatch.setenv("MMR1_EVERY", "7")
    with pytest.raises(ConfigurationError, match="unknown option MMR1_EVERY; did you mean MMR1_EVAL_EVERY"):
        load(tmp_path, REQUIRED)


def test_help_of_a_command_begins_with_its_own_options() -> None:
    names = [line.split()[0].removeprefix("--") for line in option_help(EvalConfig).splitlines()]
    assert names[:4] == ["eval_mode", "eval_samples", "eval_dir", "rollout_servers"]
    assert sorted(names) == sorted(EvalConfig.model_fields), "each once"
    assert option_help().splitlines()[0].split()[0].removeprefix("--") == next(iter(RunConfig.model_fields))


def test_yaml_may_give_one_value_or_nothing_for_a_list(tmp_path: Path) -> None:
    config = load(tmp_path, {**REQUIRED, "dump_steps": 3, "kl": None, "stop": None, "trackers": "wandb"})
    assert (config.dump_steps, config.kl, config.stop, config.trackers) == ([3], [], [], ["wandb"])
    with pytest.raises(ConfigurationError, match="rewards is empty"):
        load(tmp_path, {**REQUIRED, "rewards": None})
    with pytest.raises(ConfigurationError, match=r"option 'kl\.1'"):
        load(tmp_path, REQUIRED, "--kl", "k1,k33")


def test_a_file_that_says_what_has_been_is_read_without_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: m\ntrain_file: t\nnum_steps: 1\nper_device_batch_size: 8\nobjective: rloo\n")
    monkeypatch.setenv("MMR1_OBJECTIVE", "kimi")
    assert load_config(file).objective == "kimi"
    assert load_config(file, environment=False).objective == "rloo"
    assert load_config(file, ["--objective", "gspo"], environment=False).objective == "gspo"


@pytest.mark.parametrize(
    "url",
    ["http://user:hunter2secret@h:9/", "https://hunter2secret@h", "http://:hunter2secret/@h", "h:hunter2secret@x"],
)
def test_a_reward_url_with_a_password_is_refused_wherever_it_stands_and_not_shown(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stand in config.yaml, in what is printed, and in what trackers are told."""
    with pytest.raises(ConfigurationError, match=r"^option 'reward_url': it holds .*MMR1_REWARD_API_KEY") as file:
        load(tmp_path, {**REQUIRED, "reward_url": url})
    with pytest.raises(ConfigurationError, match="reward_url") as argument:
        load(tmp_path, REQUIRED, "--reward_url", url)
    monkeypatch.setenv("MMR1_REWARD_URL", url)
    with pytest.raises(ConfigurationError, match="reward_url") as variable:
        load(tmp_path, REQUIRED)
    assert not any("hunter2secret" in str(raised.value) for raised in (file, argument, variable))
