"""Options that cannot be right are one line, wherever they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmr1.config import RunConfig, load_config, save_config
from mmr1.errors import ConfigurationError

REQUIRED = ["--model", "m", "--train_file", "t.json", "--num_steps", "3", "--per_device_batch_size", "8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top_p", "0.9"], "only 1.0 is exact"),
        (["--rewards"], "rewards is empty"),
        (["--stop", "a", ""], r"option .stop.1.: String should have at least 1 character"),
        (["--rewards", "counting=nan"], "'counting=nan' is not NAME or NAME=WEIGHT"),
        (["--learning_rate", "inf"], "finite number"),
        (["--learning_rate", "--seed", "1"], "--learning_rate needs a value"),
        (["--num_stepz", "4"], "did you mean 'num_steps'"),
        (["--seed", "1", "2"], "--seed takes one value"),
        (["--kimikl_task_id", ""], "'kimikl_task_id': String should have at least 1 character"),
        (["--per_device_batch_size", "12"], "nearest valid per_device_batch_size: 8, 16"),
        (["--temperature_func", "linear", "--temperature_begin", "2"], "temperature_begin is above temperature_end"),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_config(None, [*REQUIRED, *arguments])
    assert "\n" not in str(caught.value)


def test_the_environment_is_held_to_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMR1_LEARNING_RAT", "5")
    with pytest.raises(ConfigurationError, match="did you mean MMR1_LEARNING_RATE"):
        load_config(None, REQUIRED)
    monkeypatch.delenv("MMR1_LEARNING_RAT")
    monkeypatch.setenv("MMR1_STOP", "</answer>")
    monkeypatch.setenv("MMR1_LOG_JSON", "1")
    assert load_config(None, REQUIRED).stop == ["</answer>"]


def test_command_line_then_environment_then_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "{model: ~/m, train_file: t, num_steps: 3, per_device_batch_size: 8, seed: 1, keep_last: 1, eval_every: 1}"
    )
    monkeypatch.setenv("MMR1_SEED", "2")
    monkeypatch.setenv("MMR1_KEEP_LAST", "2")
    config = load_config(path, ["--seed", "3"])
    assert (config.seed, config.keep_last, config.eval_every) == (3, 2, 1)
    assert config.model == str(Path.home() / "m")


def test_an_objectives_defaults_hold_for_what_nobody_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the file, the environment and the command line alike; what was saved reads back as it is."""
    path = tmp_path / "run.yaml"
    path.write_text("{model: m, train_file: t, num_steps: 3, per_device_batch_size: 8, objective: gspo, clip_low: 0.1}")
    config = load_config(path)
    assert (config.clip_low, config.clip_high) == (0.1, 4e-4)
    config = load_config(path, ["--objective", "dapo", "--kl", "k1", "kimifull", "--entropy_reg"])
    assert (config.clip_low, config.clip_high, config.dynamic_sampling) == (0.1, 0.28, True)
    assert (config.kl, config.entropy_reg) == (["k1", "kimifull"], True)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    saved = (tmp_path / "saved.yaml").read_text()
    assert "clip_low: 0.1\n" in saved and "\n#   clip_high: 0.28\n" in saved, "both can be read, one was given"
    monkeypatch.setenv("MMR1_OBJECTIVE", "cispo")
    monkeypatch.setenv("MMR1_CLIP_LOW", "0.3")
    assert load_config(path).aggregation == "token_mean"
    assert load_config(path, ["--clip_low", "0.4"]).clip_low == 0.4


def test_a_divergence_of_one_task_regularises_that_task_alone() -> None:
    config = load_config(None, [*REQUIRED, "--kl", "kimikl", "--kimikl_task_id", "ocr"])
    assert config.has_regularisation("ocr") and not config.has_regularisation("counting")
    assert config.model_copy(update={"kimikl_task_id": None}).has_regularisation("counting")
    assert config.model_copy(update={"kl": ["kimikl", "k3"]}).has_regularisation("counting")
    assert config.model_copy(update={"entropy_reg": True}).has_regularisation("counting")


def test_another_objective_does_not_inherit_the_defaults_of_a_saved_one(tmp_path: Path) -> None:
    """What somebody gave stays, whatever the objective; a run of the saved one is the same run."""
    path = tmp_path / "config.yaml"
    dapo = load_config(None, [*REQUIRED, "--objective", "dapo", "--overlong", "mask"])
    save_config(dapo, path)
    assert load_config(path) == dapo
    grpo = load_config(path, ["--objective", "grpo"])
    assert grpo == load_config(None, [*REQUIRED, "--overlong", "mask"])
    assert (grpo.clip_high, grpo.aggregation, grpo.dynamic_sampling) == (0.2, "sequence_mean", False)
    save_config(grpo.model_copy(update={"redis_port": 7000}), path)
    assert load_config(path, ["--objective", "dapo", "--redis_port", "6390"]) == dapo
    given = RunConfig(model="m", train_file="t", num_steps=3, per_device_batch_size=8, objective="gspo", clip_low=0.1)
    save_config(given, path)
    found = load_config(path, ["--objective", "grpo"])
    assert (found.clip_low, found.clip_high) == (0.1, 0.2)
