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

from mmr1.capacity.measured import BETWEEN_STEPS_SECONDS, KEPT_FREE, SHARED_RESERVE
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
        "1+3 at ZeRO-1",
        *(f"{layout} at ZeRO-{stage}" for layout in ("2+2", "2+1x2", "3+1") for stage in (1, 2, 3)),
    }
    best = found["layouts"][found["recommended"]]
    assert best["fits"] and best["options"] == found["options"]
    alike = [layout for layout in found["layouts"] if layout["prompts_per_step"] == best["prompts_per_step"]]
    assert best["seconds_per_prompt"] <= 1.05 * min(layout["seconds_per_prompt"] for layout in alike if layout["fits"])
    for layout in found["layouts"]:
        learner, rollout = layout["learner_seconds"], layout["rollout_seconds"]
        update = layout["update_seconds"] + layout["probe_seconds"]
        waits = (
            layout["options"]["zero_stage"] == 3
        )  # else the update is beside the next step, and servers pause for it
        beside = max(learner + BETWEEN_STEPS_SECONDS, rollout + update)
        assert layout["step_seconds"] == pytest.approx(max(learner, rollout) + update if waits else beside)
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
    assert document(capsys, *fixed, "--prompts", "8")["recommendation"] == "1+1 at ZeRO-1"
    found = document(capsys, *fixed, "--prompts", "13")
    assert found["recommendation"] == "1+1 at ZeRO-1, 14 prompts a step instead of 13"
    assert main(["plan", *fixed, "--prompts", "13"]) == 0
    shown = capsys.readouterr().out
    assert "Recommended: 1+1 at ZeRO-1, 14 prompts a step instead of 13." in shown and "prompts" in shown


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
    arguments = ["--model", str(model), "--gpus", "16", "--gpu", "h200", *GROUP]
    found = document(capsys, *arguments)
    (note,) = [note for note in found["notes"] if "16 GPUs are more than one machine's 8" in note]
    assert "50 GB/s, which is assumed" in note
    assert {"8+8 at ZeRO-1", "8+8 at ZeRO-2", "8+1x8 at ZeRO-3"} <= names(found)
    assert "10+3x2 at ZeRO-2" in names(found) and "10+6 at ZeRO-2" in names(found)
    assert found["recommendation"].startswith("8+8 at ZeRO-1")
    one_machine = document(capsys, *arguments, "--gpus_per_node", "16")
    assert not any("more than one machine" in note for note in one_machine["notes"])
    slower, quicker = (
        next(one for one in each["layouts"] if one["name"] == "12+4 at ZeRO-2") for each in (found, one_machine)
    )
    assert slower["learner_seconds"] > quicker["learner_seconds"]
    assert slower["update_seconds"] > quicker["update_seconds"]


def test_where_nothing_fits(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(model), "--gpus", "1", *GROUP]) == 2
    said = capsys.readouterr()
    assert "90!" in said.out
    assert "try 3 GPUs (zero_stage 3 cuts" in said.err
    for remedy in ("lora_rank 16", "kl empty", "per_device_batch_size", "offload_optimizer"):
        assert remedy in said.err
    found = document(capsys, "--model", str(model), "--gpus", "2", "--gpu-memory", "10", *GROUP, code=2)
    assert found["recommended"] is found["options"] is None
    assert not any(layout["fits"] for layout in found["layouts"])
    # Adapters need a sixth of the memory.
    document(capsys, "--model", str(model), "--gpus", "1", "--lora_rank", "16", "--num_generations", "4", *GROUP)


@pytest.fixture
def large(model: Path) -> Path:
    """Of the shape of https://huggingface.co/Qwen/Qwen2.5-VL-72B-Instruct."""
    path = model / "config.json"
    described = json.loads(path.read_text())
    described |= {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "vocab_size": 152064}
    described |= {"num_attention_heads": 64, "num_key_value_heads": 8, "tie_word_embeddings": False}
    described["vision_config"]["out_hidden_size"] = 8192
    path.write_text(json.dumps(described))
    return model


def test_what_each_side_needs_at_least(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rollout server cut over GPUs fits; the learner does not, and says how many GPUs would do."""
    arguments = ["plan", "--model", str(large), "--gpu", "h200"]
    assert main([*arguments, "--gpus", "8"]) == 2
    said = capsys.readouterr().err
    assert "a rollout GPU 49 GB (rollout_tensor_parallel_size 4)" in said and "max_num_seqs" not in said
    enough = int(said.partition("try ")[2].partition(" GPUs")[0])
    assert main([*arguments, "--gpus", str(enough)]) == 0
    assert main([*arguments, "--gpus", str(enough - 1)]) == 2
    capsys.readouterr()
    # And the other way round: a learner of adapters that fits, and servers that must be cut.
    tight = ["--gpus", "2", "--lora_rank", "8", "--zero_stage", "3", "--rollout_tensor_parallel_size", "1"]
    assert main([*arguments, *tight, "--gpu_memory", "172"]) == 2
    said = capsys.readouterr().err
    assert "a larger rollout_tensor_parallel_size" in said and "offload_optimizer" not in said
    assert main([*arguments, "--gpus", "2", "--gpu_memory", "10"]) == 2
    assert "64 of these would not do" in capsys.readouterr().err


def test_one_gpus_server_gets_what_the_learner_leaves(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(model), "--gpus", "1", "--gpu", "h200", *GROUP]
    found = document(capsys, *arguments)
    (only,) = found["layouts"]
    share = only["options"]["gpu_memory_utilization"]
    left = 1 - only["learner_bytes"] / found["gpu_memory_bytes"] - share
    assert KEPT_FREE + SHARED_RESERVE <= left < KEPT_FREE + SHARED_RESERVE + 0.011
    given = document(capsys, *arguments, "--gpu_memory_utilization", "0.15")
    assert given["options"]["gpu_memory_utilization"] == 0.15


def test_what_a_command_line_fixes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(model), "--gpus", "8", "--gpu", "h200", *GROUP]
    found = document(capsys, *arguments, "--zero_stage", "3", "--learner-processes", "4")
    assert names(found) == {"4+4 at ZeRO-3", "4+2x2 at ZeRO-3", "4+1x4 at ZeRO-3"}
    assert not any("Set aside" in note for note in found["notes"])
    found = document(capsys, *arguments, "--rollout_replicas", "2", "--rollout_tensor_parallel_size=2")
    assert names(found) == {f"4+2x2 at ZeRO-{stage}" for stage in (1, 2, 3)}
    whole, cut = (
        document(capsys, *arguments, "--zero_stage", str(stage), "--learner_processes", "4")["layouts"][0]
        for stage in (1, 2)
    )
    assert whole["learner_bytes"] >= cut["learner_bytes"]
    assert main(["plan", *arguments, "--learner_processes", "8"]) == 2
    assert "no layout of 8 GPUs has learner_processes 8; leave one of them out" in capsys.readouterr().err


def test_what_is_set_aside_is_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump({"model": str(model), "zero_stage": 3, "rollout_replicas": 3}))
    arguments = [str(run), "--gpus", "4", "--gpu", "h200", "--per_device_batch_size", "192", *GROUP]
    (said,) = [note for note in document(capsys, *arguments)["notes"] if "Set aside" in note]
    assert "zero_stage 3, per_device_batch_size 192, rollout_replicas 3." in said
    assert "On the command line zero_stage, rollout_replicas would be kept." in said


def test_a_float32_run_is_planned_in_float32(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(model), "--gpus", "8", "--gpu", "h200", "--learner_processes", "4", *GROUP]
    half, whole = document(capsys, *arguments), document(capsys, *arguments, "--dtype", "float32")
    assert (half["options"]["dtype"], whole["options"]["dtype"]) == ("bfloat16", "float32")
    by_name = {layout["name"]: layout for layout in half["layouts"]}
    for layout in whole["layouts"]:
        other = by_name[layout["name"]]
        assert layout["learner_seconds"] > 2 * other["learner_seconds"]
        assert layout["update_seconds"] == pytest.approx(2 * other["update_seconds"])
        assert layout["rollout_bytes"] > other["rollout_bytes"]
    assert main(["plan", *arguments, "--dtype", "float32"]) == 0
    assert "In float32, which was not measured" in capsys.readouterr().out


def test_host_memory(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(model), "--gpus", "8", "--gpu", "h200", "--learner_processes", "4", *GROUP]
    found = document(capsys, *arguments)
    weights = 2 * found["num_parameters"]
    host = {
        layout["name"].partition(" at ")[2]: (layout["host_bytes"] / weights, layout["host_bytes_kept"] / weights)
        for layout in found["layouts"]
    }
    assert host == {"ZeRO-1": (4, 0), "ZeRO-2": (4, 0), "ZeRO-3": (2, 1)}  # rank 0's alone, with a reference beside it
    assert any(note.startswith("Host memory of the learner, 4+4 at ZeRO-1: 30 GB") for note in found["notes"])
    adapters = document(capsys, *arguments, "--lora_rank", "8", "--zero_stage", "2")["layouts"][0]
    assert (adapters["host_bytes"] / weights, adapters["host_bytes_kept"] / weights) == (4, 1)
    across = document(capsys, *arguments, "--gpus_per_node", "2", "--zero_stage", "2")["layouts"][0]
    assert across["host_bytes"] == 2 * weights


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
