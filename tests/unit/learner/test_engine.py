"""However a step is cut over ranks and ZeRO stages, it is the same step; interrupted anywhere, it is the same run.

Real ranks, real DeepSpeed: one rank alone, then two together, then one that goes on from what both left.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from mmr1_learner.checkpoint import Checkpoints, verify
from tests.unit.learner.ranks_of_a_test import groups_with_images, run_ranks, untied

COMMON = {"learning_rate": 1e-3, "num_generations": 4, "adam_beta2": 0.9}
ALONE = {"per_device_batch_size": 16}  # everything in one forward
SHARED = {"per_device_batch_size": 2, "gradient_accumulation_steps": 4}  # three forwards, one of them a dummy
REF = {"ref_sync_steps": 2, "ref_sync_alpha": 0.25}
LORA = {"lora_rank": 2, "lora_alpha": 8, "lora_target_modules": ["q_proj", "down_proj"]}
DROPOUT = {**LORA, "lora_dropout": 0.5}
ALONE_SENT = {"lora_updates": "adapter", "freeze_vision_tower": True}
OFFLOAD = {"offload_optimizer": True}
# What a forward in between could disturb: activations that are computed again, and what adapters drop out.
IN_PARTS = {**DROPOUT, "gradient_checkpointing": True, "zero_stage": 2}


class Results(NamedTuple):
    """By the scenario's name: what one rank made, what two made, and what one made of what others had left."""

    folder: Path
    one: dict[str, Any]
    two: dict[str, Any]
    resumed: dict[str, Any]
    odd: dict[str, Any]  # of two, with a checkpoint that is not what its config.json says


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Results:
    folder = tmp_path_factory.mktemp("engine")
    # Small tensors stay whole at stage 3 unless DeepSpeed is told otherwise: here every one shall be cut.
    file = folder / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    third = {"zero_stage": 3, "deepspeed_config_file": str(file)}
    common = {**COMMON, "image_root": str(folder), "run_dir": str(folder / "run")}
    groups = groups_with_images(folder, [56, 84, 112])

    def scenario(name: str, shape: dict[str, Any], extra: dict[str, Any], **how: Any) -> dict[str, Any]:
        return {"name": name, "options": {**common, **shape, **extra}, **how}

    def start(part: str, world_size: int, scenarios: list[dict[str, Any]], model: Path = small_model) -> dict[str, Any]:
        return run_ranks(folder / part, model, groups, scenarios, world_size)

    one = start(
        "one",
        1,
        [
            scenario("plain", ALONE, {}, last=4, save_at=2),
            scenario("step", ALONE, {}),
            scenario("checkpointing", ALONE, {"gradient_checkpointing": True}),
            scenario("stage 1", ALONE, {"zero_stage": 1}),
            scenario("stage 2", ALONE, {"zero_stage": 2}),
            scenario("stage 3", ALONE, third),
            scenario("stage 1 offload", ALONE, {"zero_stage": 1, **OFFLOAD}),
            scenario("stage 2 offload", ALONE, {"zero_stage": 2, **OFFLOAD}),
            scenario("stage 3 offload", ALONE, {**third, **OFFLOAD, "offload_parameters": True}),
            scenario("bfloat16", ALONE, {"dtype": "bfloat16"}, last=4, save_at=2),
            scenario("bfloat16 stage 3", ALONE, {"dtype": "bfloat16", **third}),
            scenario("frozen tower", ALONE, {"freeze_vision_tower": True}),
            scenario("moving", ALONE, REF, last=4, save_at=3),
            scenario("lora", ALONE, LORA, last=4, save_at=2, export=True),
            scenario("dropout", ALONE, DROPOUT, last=4, save_at=2),
            scenario("sent alone", ALONE, {**LORA, **ALONE_SENT}),
            scenario("in parts", SHARED, IN_PARTS, last=2),
            scenario("scored meanwhile", SHARED, IN_PARTS, last=2, meanwhile=True),
            scenario("scored beside", ALONE, {"gradient_checkpointing": True}, beside=True),
        ],
    )
    plain = str(folder / "one" / "plain.state")
    two = start(
        "two",
        2,
        [
            scenario("stage 0", SHARED, {}),
            scenario("stage 1", SHARED, {"zero_stage": 1}),
            scenario("stage 2", SHARED, {"zero_stage": 2}),
            scenario("stage 3", SHARED, third, last=4, save_at=2),
            scenario("stage 3 step", SHARED, third),
            scenario("stage 2 scored", SHARED, {"zero_stage": 2}, meanwhile=True),
            scenario("in parts", SHARED, IN_PARTS, last=2),
            scenario("scored meanwhile", SHARED, IN_PARTS, last=2, meanwhile=True),
            scenario("stage 2 beside", SHARED, {"zero_stage": 2}, beside=True),
            scenario("stage 2 offload", SHARED, {"zero_stage": 2, **OFFLOAD}),
            scenario("stage 3 offload", SHARED, {**third, **OFFLOAD, "offload_parameters": True}),
            scenario("moving", SHARED, {**third, **REF}, last=4, save_at=3),
            scenario("lora", SHARED, {**third, **LORA}, last=4, save_at=2),
            scenario("sent alone", SHARED, {**third, **LORA, **ALONE_SENT}),
            scenario("loop", SHARED, {**third, "checkpoint_every": 2}, loop=True),
            scenario("from one", SHARED, third, first=2, last=4, load=plain),
            scenario("from one, stage 2", SHARED, {"zero_stage": 2}, first=2, last=4, load=plain),
        ],
    )
    odd = start("odd", 2, [scenario("stage 3", SHARED, third)], untied(small_model, folder / "untied"))
    left = {name: str(folder / "two" / f"{name}.state") for name in ("stage 3", "moving", "lora")}
    resumed = start(
        "resumed",
        1,
        [
            scenario("plain", ALONE, {}, first=2, last=4, load=plain),
            scenario("moving", ALONE, REF, first=3, last=4, load=str(folder / "one" / "moving.state")),
            scenario("lora", ALONE, LORA, first=2, last=4, load=str(folder / "one" / "lora.state")),
            scenario("dropout", ALONE, DROPOUT, first=2, last=4, load=str(folder / "one" / "dropout.state")),
            scenario(
                "bfloat16", ALONE, {"dtype": "bfloat16"}, first=2, last=4, load=str(folder / "one" / "bfloat16.state")
            ),
            scenario("from two", ALONE, {}, first=2, last=4, load=left["stage 3"]),
            scenario("moving from two", ALONE, REF, first=3, last=4, load=left["moving"]),
            scenario("lora from two", ALONE, LORA, first=2, last=4, load=left["lora"]),
        ],
    )
    return Results(folder, one, two, resumed, odd)


pytestmark = [pytest.mark.engine, pytest.mark.matrix, pytest.mark.timeout(1500)]  # some thirty scenarios

STAGES = ["stage 0", "stage 1", "stage 2", "stage 3 step", "stage 2 offload", "stage 3 offload"]
STAGES_ALONE = ["stage 1", "stage 2", "stage 3", "stage 1 offload", "stage 2 offload", "stage 3 offload"]


def assert_close(found: dict[str, Any], expected: dict[str, Any], bound: float = 2e-5) -> None:
    """Adam turns a gradient's sign into a whole step of 1e-3: where a gradient is near zero, one element may be off by
    that much; the mean over a tensor may not."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].float() - tensor.float()).abs().mean() < bound, name


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected and list(found) == list(expected)
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def moved(result: dict[str, Any], since: dict[str, Any]) -> set[str]:
    return {name for name, tensor in since.items() if not torch.equal(tensor, result["parameters"][name])}


def assert_same_report(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("loss", "entropy", "kl_k3", "num_tokens", "grad_norm"):
        assert found["report"][name] == pytest.approx(expected["report"][name], rel=1e-4, abs=1e-7), name
    # A token's gap stands on record beside its own completion, whichever rank has computed it; the step's k3 is theirs.
    assert found["gaps"].keys() == expected["gaps"].keys()
    for result in (found, expected):
        gaps = [gap for of_one in result["gaps"].values() for gap in of_one]
        assert len(gaps) == result["report"]["num_tokens"]
        k3 = sum(math.expm1(gap) - gap for gap in gaps) / len(gaps)
        assert k3 == pytest.approx(result["report"]["off_policy_kl"], rel=1e-4)
    for key, gaps in expected["gaps"].items():
        assert found["gaps"][key] == pytest.approx(gaps, abs=1e-3), key


@pytest.fixture(scope="module")
def base(small_model: Path) -> dict[str, Any]:
    """The parameters that every scenario starts from."""
    hf = AutoModelForImageTextToText.from_pretrained(small_model, dtype=torch.float32)
    return {name: parameter.data for name, parameter in hf.named_parameters()}


@pytest.mark.parametrize("stage", STAGES)
def test_two_uneven_ranks_make_the_step_of_one(results: Results, stage: str) -> None:
    """Three groups over two ranks: forwards differ in rows and images, and the short rank runs a dummy."""
    expected = results.one["step"]
    assert_same_report(results.two[stage], expected)
    assert_close(results.two[stage]["parameters"], expected["parameters"])


@pytest.mark.parametrize("stage", STAGES_ALONE)
def test_every_stage_makes_the_same_step(results: Results, stage: str) -> None:
    assert_same_report(results.one[stage], results.one["step"])
    assert_close(results.one[stage]["parameters"], results.one["step"]["parameters"], bound=1e-6)


def test_at_stage_3_rank_0_alone_loads_the_weights(results: Results) -> None:
    """With the reference, and with adapters, of which each rank has made its own before it gets rank 0's."""
    assert results.two["stage 2"]["loaded"][0] == results.two["stage 2"]["loaded"][1]
    for scenario in ("stage 3", "moving", "lora"):
        whole, hollow = results.two[scenario]["loaded"]
        assert hollow < whole / 10, scenario


def test_a_checkpoint_that_is_not_what_its_configuration_says_is_loaded_by_every_rank(results: Results) -> None:
    """Or one would have a parameter more than the others, and wait for them until a deadline."""
    first, other = results.odd["stage 3"]["loaded"]
    assert first == other > results.two["stage 3"]["loaded"][0]


def test_one_rank_keeps_no_share_of_gradients(results: Results) -> None:
    """Its share is the whole, and to keep one goes through all of them after each forward."""
    stages = ["stage 1", "stage 2", "stage 3", "stage 2 offload"]
    assert [results.one[stage]["stage"] for stage in stages] == [1, 1, 3, 2]
    assert [results.two[stage]["stage"] for stage in ("stage 1", "stage 2", "stage 3")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("stage", "masters", "parameters"), [("stage 0", 1, 1), ("stage 1", 2, 1), ("stage 3 step", 2, 2)]
)
def test_a_stage_cuts_what_it_says(results: Results, stage: str, masters: int, parameters: int) -> None:
    """Elements on rank 0 of two; equal parts are rounded up."""
    whole = sum(tensor.numel() for tensor in results.one["step"]["parameters"].values())
    held = results.two[stage]["held"]
    assert held["masters"] == pytest.approx(whole / masters, rel=0.01)
    assert held["parameters"] == pytest.approx(whole / parameters, rel=0.01)


def test_offloading_is_what_was_asked_for(results: Results) -> None:
    assert results.one["stage 3"]["held"]["offloaded"] == []
    assert results.one["stage 2 offload"]["held"]["offloaded"] == ["offload_optimizer"]
    assert results.one["stage 3 offload"]["held"]["offloaded"] == ["offload_optimizer", "offload_param"]
    for stage in ("stage 1 offload", "stage 2 offload", "stage 3 offload"):
        assert results.one[stage]["held"]["masters_on"] == ["cpu"], stage


@pytest.mark.parametrize("name", ["bfloat16", "bfloat16 stage 3"])
def test_bfloat16_learns_from_float32_masters(results: Results, base: dict[str, Any], name: str) -> None:
    """What is published is bfloat16. Steps of 1e-3, smaller than its spacing near 0.5, add up in the masters."""
    found = results.one[name]["parameters"]
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    expected = results.one["plain" if name == "bfloat16" else "step"]
    assert results.one[name]["report"]["loss"] == pytest.approx(expected["report"]["loss"], abs=0.05)

    def path(parameters: dict[str, Any]) -> torch.Tensor:
        return torch.cat([(parameters[key].float() - tensor).flatten() for key, tensor in base.items()])

    assert torch.nn.functional.cosine_similarity(path(found), path(expected["parameters"]), dim=0) > 0.5


@pytest.mark.parametrize("stage", ["stage 3", "lora", "moving"])
def test_partitioned_weights_are_published_whole_and_scored_together(results: Results, stage: str) -> None:
    """Rank 0 scores as if the weights were its own, sees a perturbation of either tower, and gets them back exactly."""
    result = results.two[stage]
    assert result["shapes"] == {name: tuple(tensor.shape) for name, tensor in result["parameters"].items()}
    scores = result["scores"]
    for tower in ("visual", "language_model"):
        assert (scores[tower] - scores["before"]).abs().mean() > 1e-6, tower
    assert torch.equal(scores["after"], scores["before"])
    name = {"stage 3": "plain"}.get(stage, stage)
    assert (scores["before"] - results.one[name]["scores"]["before"]).abs().max() < 2e-2


@pytest.mark.parametrize("name", ["plain", "moving", "lora", "dropout"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(results: Results, name: str) -> None:
    """Another process, from what the first one wrote after some of its steps; what is dropped out is the same too."""
    assert_equal(results.resumed[name]["parameters"], results.one[name]["parameters"])
    assert results.resumed[name]["report"] == pytest.approx(results.one[name]["report"], rel=0, abs=0, nan_ok=True)
    if name == "moving":
        assert_equal(results.resumed[name]["reference"], results.one[name]["reference"])
    if name in ("lora", "dropout"):
        assert_equal(results.resumed[name]["adapters"], results.one[name]["adapters"])


def test_bfloat16_goes_on_from_its_float32_masters(results: Results) -> None:
    """Not bitwise: matrix products in bfloat16 differ in their last bit from one process to the next. Two steps of 1e-3
    that began elsewhere would be as far apart."""
    found, expected = results.resumed["bfloat16"]["parameters"], results.one["bfloat16"]["parameters"]
    apart = torch.cat([(found[name].float() - tensor.float()).abs().flatten() for name, tensor in expected.items()])
    assert apart.mean() < 2e-4


@pytest.mark.parametrize(
    ("resumed", "whole"), [("from two", "stage 3"), ("moving from two", "moving"), ("lora from two", "lora")]
)
def test_one_rank_goes_on_from_two(results: Results, resumed: str, whole: str) -> None:
    assert_close(results.resumed[resumed]["parameters"], results.two[whole]["parameters"])
    assert_same_report(results.resumed[resumed], results.two[whole])


@pytest.mark.parametrize("name", ["from one", "from one, stage 2"])
def test_two_ranks_go_on_from_one(results: Results, name: str) -> None:
    assert_close(results.two[name]["parameters"], results.one["plain"]["parameters"], bound=5e-5)
    assert_same_report(results.two[name], results.one["plain"])


def test_the_loop_itself_takes_the_same_steps_and_leaves_whole_checkpoints(results: Results) -> None:
    """train.py's loop on two ranks at stage 3, which score together between the steps."""
    assert_close(results.two["loop"]["parameters"], results.two["stage 3"]["parameters"], bound=1e-6)
    folder = results.folder / "two" / "loop"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004"]
    assert [verify(path) for path in folder.iterdir()] == [None, None]
    found = Checkpoints(folder, keep_last=2).newest()
    assert found is not None and found[1].step == 4
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}, "nothing that is unpickled"


def test_what_goes_on_is_not_what_starts_anew(results: Results) -> None:
    """The comparisons above could not see a state that was never loaded, if four steps were like two."""
    first, four = results.one["step"]["parameters"], results.one["plain"]["parameters"]
    assert max((first[name] - four[name]).abs().mean() for name in four) > 1e-3


def test_recomputed_activations_give_the_same_gradient(results: Results) -> None:
    assert_same_report(results.one["checkpointing"], results.one["step"])
    assert_close(results.one["checkpointing"]["parameters"], results.one["step"]["parameters"], bound=1e-6)


def test_what_rank_0_scores_before_a_steps_forwards_changes_nothing(results: Results) -> None:
    """A version is proved when the next step has begun."""
    for found in (results.one, results.two):
        assert found["scored meanwhile"]["scored"] == [True, True]
        assert_equal(found["scored meanwhile"]["parameters"], found["in parts"]["parameters"])
        assert_equal(found["scored meanwhile"]["adapters"], found["in parts"]["adapters"])
    assert results.two["stage 2 scored"]["scored"] == [True]
    assert_equal(results.two["stage 2 scored"]["parameters"], results.two["stage 2"]["parameters"])


def test_what_a_thread_scores_beside_a_step_changes_nothing_and_is_not_changed(results: Results) -> None:
    """Both use the same modules at once."""
    for beside, alone in (
        (results.one["scored beside"], results.one["checkpointing"]),
        (results.two["stage 2 beside"], results.two["stage 2"]),
    ):
        assert_equal(beside["parameters"], alone["parameters"])
        ((count, off),) = beside["beside"]
        assert count > 1
        assert off == 0.0


def test_a_frozen_tower_stays_and_the_rest_learns(results: Results, base: dict[str, Any]) -> None:
    changed = moved(results.one["frozen tower"], base)
    assert changed and not [name for name in changed if ".visual." in name]
    assert [name for name in moved(results.one["step"], base) if ".visual." in name]


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_a_reference_moves_when_its_step_comes(results: Results, base: dict[str, Any], ranks: str) -> None:
    """ref <- alpha policy + (1 - alpha) ref after steps 2 and 4. Before, it is the base: step 3 knows it from there."""
    result = getattr(results, ranks)["moving"]
    assert result["reference"]
    state = results.folder / ranks / "moving.state"
    with safe_open(state / "state-00000.safetensors", framework="pt") as saved:
        for name, tensor in result["reference"].items():
            after_two = saved.get_tensor(f"reference/hf.{name}")
            assert not torch.equal(after_two, base[name]) or torch.equal(tensor, base[name]), name
            expected = 0.25 * result["parameters"][name] + 0.75 * after_two
            assert torch.allclose(tensor, expected, atol=1e-7), name
    assert result["report"]["kl_k3"] != results.one["plain"]["report"]["kl_k3"]


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_adapters_alone_learn_and_are_published_merged(results: Results, base: dict[str, Any], ranks: str) -> None:
    result = getattr(results, ranks)["lora"]
    assert list(result["parameters"]) == list(base), "the base's names, in its order"
    adapted = {name.replace(".lora_A.default", "") for name in result["adapters"] if "lora_A" in name}
    assert adapted and moved(result, base) <= adapted
    for name in adapted:
        stem = name.removesuffix(".weight")
        down, up = (result["adapters"][f"{stem}.lora_{part}.default.weight"] for part in "AB")
        assert torch.allclose(result["parameters"][name], base[name] + 8 / 2 * up @ down, atol=1e-6), name
    assert len([name for name in adapted if "down_proj" in name]) > 0


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_adapters_sent_alone_are_whole_and_planted_ones_leave_no_trace(
    results: Results, base: dict[str, Any], ranks: str
) -> None:
    result = getattr(results, ranks)["sent alone"]
    assert_equal(result["base"], base)
    assert result["shapes"] == {name: tuple(tensor.shape) for name, tensor in base.items()}
    assert_close(result["parameters"], results.one["sent alone"]["parameters"])
    changed = moved(result, base)
    assert changed and not any("visual" in name for name in changed)
    scores = result["scores"]
    assert torch.equal(scores["before"], scores["after"])
    assert (scores["planted"] - scores["before"]).abs().mean() > 5e-3, "five bounds of float32"


def test_dropout_changes_what_adapters_learn(results: Results) -> None:
    same, other = results.one["lora"]["adapters"], results.one["dropout"]["adapters"]
    assert [name for name, tensor in same.items() if "lora_B" in name and not torch.equal(tensor, other[name])]


def test_the_reference_of_adapters_is_the_base(results: Results) -> None:
    """After three steps the policy has left it; a run that names no divergence has none to leave."""
    assert results.one["lora"]["report"]["kl_k3"] > 1e-5
    assert results.one["step"]["report"]["kl_k3"] == pytest.approx(0, abs=1e-9)


def test_an_exported_model_and_its_adapter_load_and_agree(results: Results, small_model: Path) -> None:
    run = results.folder / "run"
    published = results.one["lora"]["parameters"]
    model = AutoModelForImageTextToText.from_pretrained(run / "model", dtype=torch.float32)
    assert_equal({name: parameter.data for name, parameter in model.named_parameters()}, published)
    start = AutoModelForImageTextToText.from_pretrained(small_model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(start, run / "adapter").merge_and_unload()
    assert_close({name: parameter.data for name, parameter in adapted.named_parameters()}, published, bound=1e-7)
