"""What each option of the learner's own work does: it changes what is trained, and how, as its definition says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from unittest import mock
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from mmr1.config.optimizer import OptimizerOptions
from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES
from mmr1_learner.adapters import sources
from mmr1_learner.checkpoint import Checkpoints, RunState
from mmr1_learner.engine import deepspeed_config
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.plan import StepPlan, cut
from mmr1_learner.ranks import Ranks
from mmr1_learner.reference import Reference
from mmr1_learner.rows import Completion, Row, RowBatch, pack
from mmr1_learner.train import _take_steps, set_environment
from tests.conftest import free_port, make_group, make_prompt
from tests.models import small_config
from tests.unit.learner.named_tests import missing_tests
from tests.unit.learner.ranks_of_a_test import TEXT, environment
from tests.unit.learner.test_rows import picture

WORKER = Path(__file__).with_name("optimizer_worker.py")
ALONE = Ranks(0, 1, torch.device("cpu"))

# Two numbers and the gradients of two steps, of norms 5 and 1.
START, GRADIENTS = [0.5, -2.0], [[3.0, -4.0], [0.8, 0.6]]
ADAMW: dict[str, Any] = {
    "learning_rate": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
TURNED: dict[str, Any] = {
    "learning_rate": 0.03,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "weight_decay": 0.5,
    "max_grad_norm": 3.0,
}


def adamw(
    learning_rate: float, adam_beta1: float, adam_beta2: float, weight_decay: float, max_grad_norm: float
) -> Tensor:
    """[steps, 2] by the paper (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), of clipped gradients."""
    weight, mean, square = torch.tensor(START, dtype=torch.float64), torch.zeros(2), torch.zeros(2)
    found = []
    for step, given in enumerate(torch.tensor(GRADIENTS, dtype=torch.float64), start=1):
        gradient = given * min(1.0, max_grad_norm / float(given.norm()))
        mean = adam_beta1 * mean + (1 - adam_beta1) * gradient
        square = adam_beta2 * square + (1 - adam_beta2) * gradient**2
        towards = (mean / (1 - adam_beta1**step)) / ((square / (1 - adam_beta2**step)).sqrt() + 1e-8)
        weight = weight - learning_rate * (towards + weight_decay * weight)
        found.append(weight)
    return torch.stack(found)


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the run's own engine makes of the numbers, by the option that was turned; "": none was."""
    names = ["", *TURNED]
    options = [{**ADAMW, **({name: TURNED[name]} if name else {})} for name in names]
    asked = json.dumps({"start": START, "gradients": GRADIENTS, "options": options})
    file = tmp_path_factory.mktemp("optimizer") / "found.json"
    command = [sys.executable, str(WORKER), asked, str(file)]
    subprocess.run(command, env=environment(MASTER_PORT=str(free_port())), check=True, timeout=200)
    return dict(zip(names, torch.tensor(json.loads(file.read_text()), dtype=torch.float64), strict=True))


@pytest.mark.engine
@pytest.mark.parametrize("option", TURNED)
def test_the_engine_steps_as_its_options_define(stepped: dict[str, Tensor], option: str) -> None:
    """Each turned by itself; what it makes of the numbers is told apart from what the others' values make of them."""
    expected = adamw(**{**ADAMW, option: TURNED[option]})
    assert (adamw(**ADAMW) - expected).abs().max() > 1e-4, "the test could see nothing"
    torch.testing.assert_close(stepped[""], adamw(**ADAMW), atol=1e-6, rtol=0)
    torch.testing.assert_close(stepped[option], expected, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def batch(small_model: Path) -> RowBatch:
    """One prompt with its image, and two completions."""
    config = small_config(small_model)
    encoder = PromptEncoder(small_model, load_policy(str(small_model), config), config)
    completions = tuple(Completion((30, 31, 32 + index), (0.0,) * 3, 1.0, 1.0) for index in range(2))
    row = Row(encoder.encode(TEXT, [picture(0, 56, 84)]), completions, 1.0)
    return pack([row], encoder.image_token_id, encoder.pad_token_id)


def backward(policy: Policy, batch: RowBatch) -> tuple[dict[str, int], dict[str, Tensor]]:
    """How often each block ran, forward and backward together, and the gradient of what is trained."""
    runs: dict[str, int] = {}

    def count(name: str) -> None:
        runs[name] = runs.get(name, 0) + 1

    for name, module in policy.named_modules():
        if name.rpartition(".")[0].endswith((".layers", ".blocks")):
            module.register_forward_pre_hook(lambda *_, name=name: count(name))
    policy(batch).logprobs.sum().backward()
    return runs, {name: part.grad for name, part in policy.named_parameters() if part.grad is not None}


def test_gradient_checkpointing_runs_every_block_again_for_the_same_gradient(
    small_model: Path, batch: RowBatch
) -> None:
    (once, kept), (twice, recomputed) = (
        backward(load_policy(str(small_model), small_config(small_model, gradient_checkpointing=on)), batch)
        for on in (False, True)
    )
    assert set(once.values()) == {1} and twice == dict.fromkeys(once, 2)
    assert any(".visual." in name for name in once) and any(".language_model." in name for name in once)
    assert kept and list(recomputed) == list(kept)
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_gradient_checkpointing_of_the_vision_tower_runs_its_blocks_alone_again(
    small_model: Path, batch: RowBatch
) -> None:
    (_, kept), (runs, recomputed) = (
        backward(load_policy(str(small_model), small_config(small_model, gradient_checkpointing=on)), batch)
        for on in (False, "vision")
    )
    assert {name: times for name, times in runs.items() if times > 1} == dict.fromkeys(
        (name for name in runs if ".visual." in name), 2
    )
    assert set(runs.values()) == {1, 2}
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_a_tower_that_nobody_can_name_is_refused(small_model: Path) -> None:
    with mock.patch.dict(FAMILIES):
        FAMILIES.clear()
        with pytest.raises(ConfigurationError, match=r"vision tower is not known here; .* takes true or false"):
            load_policy(str(small_model), small_config(small_model, gradient_checkpointing="vision"))


def test_a_frozen_vision_tower_gets_no_gradient(small_model: Path, batch: RowBatch) -> None:
    (_, every), (_, rest) = (
        backward(load_policy(str(small_model), small_config(small_model, freeze_vision_tower=on)), batch)
        for on in (False, True)
    )
    assert every.keys() - rest.keys() == {name for name in every if ".visual." in name} != set()
    assert all(torch.equal(rest[name], every[name]) for name in rest if "embed_tokens" not in name)


def adapted(model: Path, **options: Any) -> Policy:
    """A policy with adapters that add something, on q_proj alone unless told otherwise."""
    given = {"lora_rank": 2, "lora_alpha": 8.0, "lora_target_modules": "q_proj", **options}
    policy = load_policy(str(model), small_config(model, **given))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return policy


def test_the_rank_is_that_of_what_adapters_add(small_model: Path) -> None:
    for rank in (1, 3):
        added = [source for source in sources(adapted(small_model, lora_rank=rank).hf) if source.up is not None]
        ranks = {int(torch.linalg.matrix_rank(one.merged() - one.weight.data, rtol=1e-3)) for one in added}
        assert added and ranks == {rank}
    assert all(source.up is None for source in sources(adapted(small_model, lora_rank=0).hf))


def test_alpha_over_rank_scales_what_adapters_add(small_model: Path) -> None:
    for alpha in (8.0, 32.0):
        for source in sources(adapted(small_model, lora_alpha=alpha).hf):
            if source.up is not None and source.down is not None:
                expected = alpha / 2 * source.up.data @ source.down.data
                torch.testing.assert_close(source.merged() - source.weight.data, expected, atol=1e-5, rtol=1e-4)


def test_layers_of_these_names_get_adapters_and_no_others(small_model: Path) -> None:
    for names in (["q_proj"], ["down_proj", "v_proj"]):
        policy = adapted(small_model, lora_target_modules=names)
        ends = {source.name.split(".")[-2] for source in sources(policy.hf) if source.up is not None}
        assert ends == set(names)


def test_dropout_of_adapters_is_drawn_anew_in_each_forward_of_training(small_model: Path, batch: RowBatch) -> None:
    plain, dropping = (adapted(small_model, lora_dropout=share) for share in (0.0, 0.5))
    with torch.no_grad():
        expected = plain(batch).logprobs
        assert torch.equal(plain(batch).logprobs, expected)
        first, second = dropping(batch).logprobs, dropping(batch).logprobs
        assert not torch.equal(first, second) and not torch.equal(first, expected)
        torch.testing.assert_close(dropping.eval()(batch).logprobs, expected)


@pytest.mark.parametrize(
    ("every", "alpha", "expected"), [(0, 0.6, [1, 1, 1]), (1, 0.5, [2, 2.5, 2.75]), (2, 1.0, [1, 3, 3])]
)
def test_a_reference_follows_when_its_step_comes_by_its_share(every: int, alpha: float, expected: list[float]) -> None:
    """ref <- alpha policy + (1 - alpha) ref (TR-DPO, arXiv 2404.09656, equation 6): from 1 towards 3."""
    reference, policy = (cast(Any, nn.Linear(1, 1, bias=False)) for _ in range(2))
    config = small_config(Path("model"), ref_sync_steps=every, ref_sync_alpha=alpha)
    reference.weight.data.fill_(1.0)
    policy.weight.data.fill_(3.0)
    following, found = Reference(config, reference, ALONE), []
    for step in (1, 2, 3):
        following.follow(policy, step)
        found.append(reference.weight.item())
    assert found == pytest.approx(expected) and following.moves == (every > 0)


@pytest.mark.parametrize(
    ("options", "prompts", "forwards"),
    [
        ({"per_device_batch_size": 8}, 4, 1),
        ({"per_device_batch_size": 4, "gradient_accumulation_steps": 2}, 4, 2),
        ({"per_device_batch_size": 4, "gradient_accumulation_steps": 3}, 6, 3),
        ({"per_device_batch_size": 4, "learner_processes": 2}, 4, 1),
    ],
)
def test_a_step_is_as_many_forwards_of_as_many_answers(options: dict[str, int], prompts: int, forwards: int) -> None:
    config = small_config(Path("model"), num_generations=2, **options)
    assert config.prompts_per_step == prompts
    plan = StepPlan(0, tuple(make_group(make_prompt(position)) for position in range(prompts)))
    for updates in cut(plan, config, config.learner_processes):
        assert [len(forward) for forward in updates[0]] == [options["per_device_batch_size"]] * forwards


def zero(**options: Any) -> dict[str, Any]:
    found: dict[str, Any] = deepspeed_config(small_config(Path("model"), **options))["zero_optimization"]
    return found


def test_the_stage_and_what_is_offloaded_reach_deepspeed(tmp_path: Path) -> None:
    assert [zero(zero_stage=stage)["stage"] for stage in range(4)] == [0, 1, 2, 3]
    assert zero(zero_stage=0, dtype="bfloat16")["stage"] == 1
    alone = [deepspeed_config(small_config(Path("model"), zero_stage=stage), 1) for stage in range(4)]
    assert [derived["zero_optimization"]["stage"] for derived in alone] == [0, 1, 1, 3]
    types = tmp_path / "types.json"
    types.write_text(json.dumps({"data_types": {"grad_accum_dtype": "fp32"}}))
    summed = small_config(Path("model"), zero_stage=2, dtype="bfloat16", deepspeed_config_file=types)
    assert deepspeed_config(summed, 1)["zero_optimization"]["stage"] == 2
    plain, optimizer = zero(zero_stage=3), zero(zero_stage=3, offload_optimizer=True)
    parameters = zero(zero_stage=3, offload_parameters=True)
    assert optimizer.keys() - plain.keys() == {"offload_optimizer"}
    assert parameters.keys() - plain.keys() == {"offload_param"}
    assert optimizer["offload_optimizer"]["device"] == parameters["offload_param"]["device"] == "cpu"


def test_a_deepspeed_file_adds_to_what_is_derived(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 7}}))
    assert zero(zero_stage=3, deepspeed_config_file=str(file)) == {
        **zero(zero_stage=3),
        "stage3_param_persistence_threshold": 7,
    }


def test_a_learner_computes_with_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    set_environment(small_config(Path("model"), learner_threads=3))
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("every", "saved"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_a_checkpoint_is_due_every_so_many_steps_and_at_the_end(tmp_path: Path, every: int, saved: list[int]) -> None:
    config = small_config(tmp_path, num_steps=5, checkpoint_every=every)
    leader = Mock(next_plan=lambda step: StepPlan(step, ()), state_at=lambda step: step)
    told = Mock(tell=lambda word: word)
    assert _take_steps(config, told, Mock(), leader, Checkpoints(tmp_path, 1), None)
    assert [call.args[0] for call in leader.commit_checkpoint.call_args_list] == saved


@pytest.mark.parametrize("keep_last", [1, 3])
def test_so_many_checkpoints_are_kept(tmp_path: Path, keep_last: int) -> None:
    checkpoints = Checkpoints(tmp_path, small_config(tmp_path, keep_last=keep_last).keep_last)
    for step in range(1, 6):
        checkpoints.start(step, lambda: None)
        checkpoints.finish(RunState(step, step, 0), lambda: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:06d}" for step in range(6 - keep_last, 6)]


_HERE = "learner/test_optimizer_options.py::"
_STEP = f"{_HERE}test_a_step_is_as_many_forwards_of_as_many_answers"
_STAGE = f"{_HERE}test_the_stage_and_what_is_offloaded_reach_deepspeed"
_FOLLOWS = f"{_HERE}test_a_reference_follows_when_its_step_comes_by_its_share"
TESTS = {
    **dict.fromkeys(TURNED, f"{_HERE}test_the_engine_steps_as_its_options_define"),
    "num_steps": "learner/test_loss_steps.py::test_a_batch_moves_the_parameters_by_the_rate_of_its_step",
    "num_epochs": "data/test_dataset.py::test_epochs_are_steps_where_the_data_is_known",
    "lr_scheduler": "learner/test_schedules.py::test_the_curves",
    "warmup_steps": "learner/test_schedules.py::test_the_curves",
    "seed": "learner/test_prompts.py::test_each_attempt_at_each_place_has_a_seed_of_its_own_that_follows_from_the_runs",
    "per_device_batch_size": _STEP,
    "gradient_accumulation_steps": _STEP,
    "learner_processes": _STEP,
    "gradient_checkpointing": f"{_HERE}test_gradient_checkpointing_runs_every_block_again_for_the_same_gradient",
    "fused_kernels": "learner/test_fused_kernels.py::test_the_option_is_what_decides",
    "freeze_vision_tower": f"{_HERE}test_a_frozen_vision_tower_gets_no_gradient",
    "lora_rank": f"{_HERE}test_the_rank_is_that_of_what_adapters_add",
    "lora_alpha": f"{_HERE}test_alpha_over_rank_scales_what_adapters_add",
    "lora_dropout": f"{_HERE}test_dropout_of_adapters_is_drawn_anew_in_each_forward_of_training",
    "lora_target_modules": f"{_HERE}test_layers_of_these_names_get_adapters_and_no_others",
    "lora_updates": "learner/test_published_adapters.py::test_what_is_sent_is_what_an_exported_adapter_holds",
    "ref_sync_steps": _FOLLOWS,
    "ref_sync_alpha": _FOLLOWS,
    "zero_stage": _STAGE,
    "offload_optimizer": _STAGE,
    "offload_parameters": _STAGE,
    "deepspeed_config_file": f"{_HERE}test_a_deepspeed_file_adds_to_what_is_derived",
    "learner_threads": f"{_HERE}test_a_learner_computes_with_as_many_threads",
    "checkpoint_every": f"{_HERE}test_a_checkpoint_is_due_every_so_many_steps_and_at_the_end",
    "keep_last": f"{_HERE}test_so_many_checkpoints_are_kept",
}


def test_every_option_of_the_optimizer_has_a_test() -> None:
    """A new one needs a line above, and a test in which it is turned on."""
    assert TESTS.keys() == OptimizerOptions.model_fields.keys()
    assert missing_tests(TESTS.values()) == set()
