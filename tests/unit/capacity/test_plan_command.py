"""`mmr1 plan` as a user calls it: layouts, the options that it recommends, JSON, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmr1.cli import main
from mmr1.config import RunConfig
from mmr1.local.gpus import place

GROUP = ["--image-size", "896", "--max_prompt_length", "1039"]


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def names(found: dict[str, Any]) -> set[str]:
    return {layout["name"] for layout in found["layouts"]}


def test_layouts_of_four(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--model", str(model), "--gpus", "4", *GROUP)
    assert names(found) == {
        "1+3 at ZeRO-2",
        *(f"{layout} at ZeRO-{stage}" for layout in ("2+2", "2+1x2", "3+1") for stage in (2, 3)),
    }
    best = found["layouts"][found["recommended"]]
    assert best["fits"] and best["options"] == found["options"]
    fitting = [layout["seconds_per_prompt"] for layout in found["layouts"] if layout["fits"]]
    assert best["seconds_per_prompt"] <= 1.05 * min(fitting)
    for layout in found["layouts"]:
        slower = max(layout["learner_seconds"], layout["rollout_seconds"])
        after = layout["update_seconds"] + layout["probe_seconds"]
        assert layout["step_seconds"] == pytest.approx(slower + after)
        assert layout["seconds_per_prompt"] == pytest.approx(layout["step_seconds"] / layout["prompts_per_step"])


def test_one_gpu_is_shared_and_the_halves_take_turns(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--model", str(model), "--gpus", "1", "--gpu", "h200", *GROUP)
    (only,) = found["layouts"]
    assert only["shared"] and only["fits"]
    parts = sum(only[f"{part}_seconds"] for part in ("learner", "rollout", "update", "probe"))
    assert only["step_seconds"] == pytest.approx(parts)
    share = only["options"]["gpu_memory_utilization"]
    assert only["rollout_bytes"] <= share * found["gpu_memory_bytes"]
    assert share > 0 and only["learner_bytes"] <= (1 - share) * found["gpu_memory_bytes"]


def test_no_off_policy_steps_take_turns_too(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(
        capsys, "--model", str(model), "--gpus", "2", "--gpu", "h200", "--max_off_policy_steps", "0", *GROUP
    )
    (only,) = found["layouts"]
    assert only["step_seconds"] > only["learner_seconds"] + only["rollout_seconds"]


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("prompts", [1, 8, 24, 31])
def test_a_run_takes_the_options_of_every_layout(
    gpus: int, prompts: int, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--gpus", str(gpus), "--gpu", "h200", "--prompts", str(prompts), *GROUP]
    found = document(capsys, "--model", str(model), *arguments)
    for layout in found["layouts"]:
        config = RunConfig(model=str(model), train_file=Path("train.json"), num_steps=1, **layout["options"])
        assert config.prompts_per_step == layout["prompts_per_step"] >= prompts
        placement = place(config, [str(index) for index in range(gpus)])
        assert placement is not None
        used = [*placement.learner.split(","), *(gpu for server in placement.rollouts for gpu in server.split(","))]
        assert sorted(set(used), key=int) == [str(index) for index in range(gpus)]
        assert layout["shared"] == (len(used) > gpus)


def test_a_step_of_another_size_is_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--model", str(model), "--gpus", "2", "--gpu", "h200", *GROUP]
    assert document(capsys, *fixed, "--prompts", "8")["recommendation"] == "1+1 at ZeRO-2"
    found = document(capsys, *fixed, "--prompts", "11")
    assert found["recommendation"] == "1+1 at ZeRO-2, 12 prompts a step instead of 11"
    assert main(["plan", *fixed, "--prompts", "11"]) == 0
    shown = capsys.readouterr().out
    assert "Recommended: 1+1 at ZeRO-2, 12 prompts a step instead of 11." in shown and "prompts" in shown


def test_a_runs_file_says_the_rest(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.yaml"
    options = {"model": str(model), "train_file": "t.json", "num_steps": 5, "num_generations": 4, "zero_stage": 3}
    options |= {"per_device_batch_size": 48, "max_prompt_length": 600, "gradient_checkpointing": True}
    run.write_text(yaml.safe_dump(options))
    found = document(capsys, str(run), "--gpus", "4", "--max_completion_length", "100")
    assert (found["prompts_per_step"], found["num_generations"], found["completion_tokens"]) == (12, 4, 100)
    assert found["prompt_tokens"] == 600
    assert all(layout["options"]["gradient_checkpointing"] is True for layout in found["layouts"])


def test_the_table_and_what_to_write(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(model), "--gpus", "4", *GROUP]) == 0
    shown = capsys.readouterr().out
    assert "qwen2_5_vl, 3.75 B parameters (counted from its config.json)" in shown
    assert "Rule of thumb: a prompt takes" in shown
    block = shown.partition("In RUN.yaml:")[2].partition("Rule of thumb")[0]
    found = document(capsys, "--model", str(model), "--gpus", "4", *GROUP)
    assert yaml.safe_load(block) == found["options"]
    assert main(["plan", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: mmr1 plan [RUN.yaml] --gpus N")


def test_more_than_a_machine_is_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--model", str(model), "--gpus", "16", *GROUP)
    assert any("16 GPUs are more than one machine's 8" in note for note in found["notes"])
    assert {"8+8 at ZeRO-2", "8+1x8 at ZeRO-3"} <= names(found)


def test_where_nothing_fits(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(model), "--gpus", "1", *GROUP]) == 2
    said = capsys.readouterr()
    assert "90!" in said.out
    for remedy in ("two GPUs or more (zero_stage 3", "lora_rank 16", "kl empty", "per_device_batch_size"):
        assert remedy in said.err
    found = document(capsys, "--model", str(model), "--gpus", "2", "--gpu-memory", "10", *GROUP, code=2)
    assert found["recommended"] is found["options"] is None
    assert not any(layout["fits"] for layout in found["layouts"])
    # Adapters need a sixth of the memory.
    document(capsys, "--model", str(model), "--gpus", "1", "--lora_rank", "16", "--num_generations", "4", *GROUP)


def test_long_completions_go_through_in_parts(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--model", str(model), "--gpus", "8", "--max_completion_length", "65536")
    assert found["options"]["per_device_batch_size"] < found["num_generations"]
    # As many run at once as there is memory for.
    assert all(layout["rollout_bytes"] <= 0.8 * found["gpu_memory_bytes"] for layout in found["layouts"])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "option 'gpus' is required"),
        (["--gpus", "0"], "greater than 0 (given '0')"),
        (["--gpus", "many"], "option 'gpus'"),
        (["--gpus", "2", "--gpu", "a100"], "option 'gpu'"),
        (["--gpus", "2", "--image_size", "big"], "write a side in pixels"),
        (["--gpus", "2", "--gpuss", "2"], "unknown option 'gpuss'; did you mean 'gpus'"),
        (["--gpus", "2", "--max_prompt_length", "200"], "raise it above them"),
        (["--gpus", "2", "--zero_stage", "2", "--offload_optimizer"], "does not know what offloading costs"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], why: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1


def test_models_that_are_not_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for model, why in (
        ("nobody/has-this-model", "is not on this machine; download its config.json"),
        (str(tmp_path / "none"), "does not exist"),
        (str(tmp_path), "no readable config.json"),
    ):
        assert main(["plan", "--model", model, "--gpus", "2"]) == 2
        assert why in capsys.readouterr().err
    assert main(["plan", "--gpus", "2"]) == 2
    assert "option 'model' is required" in capsys.readouterr().err


def test_no_torch_is_loaded(model: Path) -> None:
    program = (
        "import sys; from mmr1.cli import main; "
        f"code = main(['plan', '--model', {str(model)!r}, '--gpus', '3', '--json']); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
