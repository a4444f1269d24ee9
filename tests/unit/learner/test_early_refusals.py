"""A mistake is one line before weights are read, also where a person or a launcher starts it, and in `mmr1 sft`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES
from mmr1.model_folder import check_folder_for, check_model
from mmr1.trained_layers import layers_to_adapt
from mmr1_learner import train as by_hand
from mmr1_learner.errors import NonFiniteLossError
from mmr1_learner.model import load_policy
from mmr1_learner.supervised import command
from mmr1_reward_server.app import create_app
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings
from tests.family_models import build
from tests.models import small_config
from tests.unit.learner.test_supervised import write_config, write_data
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_live import live

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"deepspeed_config_file": "none.json"}, "deepspeed_config_file none.json: No such file"),
    ({"deepspeed_config_file": "ds.json"}, "zero_optimization.stage is 3 and the run's is 0; set zero_stage"),
    ({"lora_rank": 2, "lora_target_modules": ["q_porj"]}, "no linear layer q_porj; it has .*q_proj"),
    ({"lora_rank": 2, "lora_target_modules": ["embed_tokens"]}, "no linear layer embed_tokens; it has"),
    ({"lora_rank": 2, "lora_target_modules": ["lm_head"]}, "lm_head cannot have an adapter"),
    ({"lora_rank": 2, "lora_target_modules": ["qkv"], "freeze_vision_tower": True}, "all in the vision tower"),
    ({"question_template": "qwem"}, "unknown template 'qwem'; did you mean 'qwen'"),
    ({"trackers": ["wandb"]}, "the package wandb is not installed"),
    ({"model": "no/such/model"}, "model 'no/such/model' does not exist"),
    ({"model": "weightless"}, "model 'weightless' has no weights"),
    ({"train_file": "none.json"}, "dataset none.json: No such file"),
    ({"image_key": "picture"}, "key 'picture' is missing"),
    ({"eval_file": "eval_without.json"}, "eval_without.json:1: key 'solution' is missing"),
    ({"train_file": "no_image.json"}, "no_image.json:1: key 'image': image none.png: does not exist"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a good dataset and what the mistakes name."""
    monkeypatch.chdir(write_data(tmp_path))
    Path("ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    Path("eval_without.json").write_text(json.dumps([{"problem": "Which?", "image": "0.png"}]))
    Path("no_image.json").write_text(json.dumps([{"problem": "Which?", "solution": "a", "image": "none.png"}]))
    Path("weightless").mkdir()
    Path("weightless/config.json").write_text('{"model_type": "qwen2_5_vl"}')
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("mmr1.tracker_names.find_spec", lambda _: None)
    return tmp_path


def start_learner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("set_environment", "configure_logging", "check_reward_names", "check_rows_of_server"):
        monkeypatch.setattr(by_hand, name, lambda *_: None)
    monkeypatch.setattr(by_hand, "train", lambda _: pytest.fail("weights would be read"))
    by_hand.main(["--config", "sft.yaml"])


def start_sft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_train", lambda _: pytest.fail("weights would be read"))
    command.main(["sft.yaml"])


def start_rank_of_sft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    start_sft(folder, monkeypatch)


def test_a_misspelt_task_of_the_kimikl_term_is_named(
    small_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would switch the term off without a word. Fine-tuning has no such term, and its data may be another."""
    options = {"num_steps": 1, "per_device_batch_size": 8, "kl": ["kimikl"], "kimikl_task_id": "couting"}
    write_config(folder, small_model, folder, **options)
    with pytest.raises(ConfigurationError, match="no training problem is of task 'couting'; did you mean 'counting'"):
        start_learner(folder, monkeypatch)
    started = []
    monkeypatch.setattr(command, "_train", lambda _: started.append(True) or 0)
    assert command.main(["sft.yaml"]) == 0 and started


def test_rows_that_the_reward_server_cannot_score_are_named(
    small_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A held-out row too: it would end the run at its last evaluation."""
    for name in ("set_environment", "configure_logging"):
        monkeypatch.setattr(by_hand, name, lambda *_: None)
    monkeypatch.setattr(by_hand, "train", lambda _: pytest.fail("weights would be read"))
    row = {"problem": "How many?", "solution": 3, "image": "0.png"}
    for name, solution in (("right.json", 3), ("wrong.json", "a few")):
        Path(name).write_text(f"{json.dumps(row)}\n{json.dumps(row | {'solution': solution})}\n")
    tasks = Registry(builtin_tasks())
    with live(create_app(Settings(), tasks, InProcessScoring(tasks))) as url:
        for files in (("wrong.json", "right.json"), ("right.json", "wrong.json")):
            data = {"train_file": files[0], "eval_file": files[1], "eval_at_start": False, "reward_url": url}
            write_config(folder, small_model, folder, num_steps=1, per_device_batch_size=8, **data)
            with pytest.raises(ConfigurationError, match=r"(?s)wrong\.json.*[: ]2[: ].*must be a count") as caught:
                by_hand.main(["--config", "sft.yaml"])
            assert "cannot be scored" in str(caught.value)


@pytest.mark.parametrize("start", [start_learner, start_sft])
def test_a_folder_of_another_run_is_named(
    start: Any, small_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(folder, small_model, folder, num_steps=1, per_device_batch_size=8, seed=1)
    state = folder / ("sft" if start is start_sft else "") / "checkpoints/step-000001/state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"identity": {"seed": 5}}))
    with pytest.raises(ConfigurationError, match="another run: seed was 5 and is 1"):
        start(folder, monkeypatch)


@pytest.mark.parametrize("start", [start_learner, start_sft, start_rank_of_sft])
@pytest.mark.parametrize(("options", "reason"), MISTAKES)
def test_a_mistake_is_named_before_weights_are_read(
    start: Any, options: dict[str, Any], reason: str, small_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(folder, small_model, folder, **{"num_steps": 1, "per_device_batch_size": 8, **options})
    with pytest.raises(ConfigurationError, match=reason) as caught:
        start(folder, monkeypatch)
    assert "\n" not in str(caught.value)


def test_ranks_of_a_launcher_count_for_the_batch_of_deepspeeds_file(
    small_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`learner_processes` says 1; two ranks are there, and the file is held against them."""
    started: list[Any] = []
    monkeypatch.setattr(command, "_train", lambda config: started.append(config) or 0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    Path("ds.json").write_text('{"train_batch_size": 8}')
    write_config(folder, small_model, folder, num_steps=1, deepspeed_config_file="ds.json")
    assert command.main(["sft.yaml"]) == 0 and started[0].learner_processes == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_in_a_folder_say_what_the_loaded_model_would(family: str, tmp_path: Path) -> None:
    """Every linear layer's name is accepted from the headers alone, and no other is."""
    build(family, tmp_path)
    plain = small_config(tmp_path)
    linear = [n for n, module in load_policy(str(tmp_path), plain).hf.named_modules() if isinstance(module, nn.Linear)]
    ends = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
    config = small_config(tmp_path, lora_rank=2, lora_target_modules=ends, freeze_vision_tower=True)
    check_folder_for(config, tmp_path)
    with pytest.raises(ConfigurationError) as from_headers:
        check_folder_for(config.model_copy(update={"lora_target_modules": ["none"]}), tmp_path)
    with pytest.raises(ConfigurationError) as from_modules:
        layers_to_adapt(linear, config.model_copy(update={"lora_target_modules": ["none"]}))
    assert str(from_headers.value) == str(from_modules.value)


def test_pixel_bounds_and_the_stage_of_a_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ConfigurationError, match="the processor of a llava has no bounds of pixels; leave it out"):
        check_folder_for(small_config(tmp_path, max_pixels=50176), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "other_vl"}')
    with pytest.raises(
        ConfigurationError, match=r"a other_vl, trained in padded rows, .*; set zero_stage to 2 or less"
    ):
        check_folder_for(small_config(tmp_path, zero_stage=3), tmp_path)


def test_a_loss_that_is_no_number_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2: a supervisor that started it again would hand it the same groups."""

    def diverge(_: Any) -> None:
        raise NonFiniteLossError("step 3: loss nan from groups 4/0")

    write_config(folder, Path("m"), folder, num_steps=1, per_device_batch_size=8)
    for name in ("set_environment", "configure_logging", "check"):
        monkeypatch.setattr(by_hand, name, lambda *_: None)
    monkeypatch.setattr(by_hand, "train", diverge)
    with pytest.raises(ConfigurationError, match="step 3: loss nan from groups 4/0; the run stops") as raised:
        by_hand.main(["--config", "sft.yaml"])
    assert "\n" not in str(raised.value)


def test_the_cached_snapshot_that_would_load_is_looked_at(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """main's, whatever others are called; the last by name where nobody knows main."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--some--model"
    (model / "snapshots").mkdir(parents=True)
    (model / "snapshots" / "1111").symlink_to(small_model)
    (model / "snapshots" / "ffff").mkdir()
    (model / "snapshots" / "ffff" / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(ConfigurationError, match="has no weights"):
        check_model("some/model")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("1111")
    assert check_model("some/model") == model / "snapshots" / "1111"
