"""What is computed against what was measured, on H200s: benchmarks/learner_gpu.txt, benchmarks/learner_ranks.jsonl,
benchmarks/end_to_end_gpu.jsonl and docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mmr1.capacity import measured
from mmr1.capacity.layouts import layouts
from mmr1.capacity.learner import (
    WORTH_ANOTHER_STEP,
    Checkpointing,
    copy_seconds,
    gather_seconds,
    held_bytes,
    peak_bytes,
    probe_seconds,
    step_seconds,
)
from mmr1.capacity.measured import GPUS, ROLLOUT_TOKENS_PER_SECOND, STEPS_OFF
from mmr1.capacity.rollout import rollout, update_seconds
from mmr1.capacity.shapes import read_shape
from mmr1.capacity.work import Work, work_of
from mmr1.config.plan_options import PlanConfig

Planned = Callable[..., PlanConfig]
ONE_RANK = (1, 1)  # at ZeRO-1, which it takes for 2
ALL_AT_ONCE = ("--max_num_seqs=512", "--max_concurrent_prompts=64")


@pytest.fixture
def work(planned: Planned, model: Path) -> Work:
    return work_of(planned(), read_shape("3b", model), model)


def test_parameters_and_the_learners_memory_between_steps(work: Work) -> None:
    assert work.shape.num_parameters == pytest.approx(3.755e9, rel=0.002)
    assert work.weight_bytes == pytest.approx(7.51e9, rel=0.002)
    assert held_bytes(work, *ONE_RANK) == pytest.approx(52.6e9, rel=0.005)


def test_flops_of_a_group(work: Work) -> None:
    assert work.image_tokens == 1024
    assert work.learner_flops(8) == pytest.approx(45e12, rel=0.03)


@pytest.mark.parametrize(
    ("groups", "checkpointing", "peak"),
    # The first two are the optimizer's step, of an earlier version.
    [(1, True, 82.7), (1, False, 82.7), (4, "vision", 84.7), (8, "vision", 106.9), (4, False, 105.7)],
)
def test_peak_memory(work: Work, groups: int, checkpointing: Checkpointing, peak: float) -> None:
    found = peak_bytes(work, *ONE_RANK, generations=8 * groups, checkpointing=checkpointing)
    assert found == pytest.approx(peak * 1e9, rel=0.03)


@pytest.mark.parametrize(
    ("groups", "checkpointing", "taken", "within"),
    [
        (4, False, 0.118, 0.16),  # that the tower is not computed twice is not told apart
        (4, "vision", 0.138, 0.03),
        (8, "vision", 0.121, 0.03),
    ],
)
def test_seconds_a_group(work: Work, groups: int, checkpointing: Checkpointing, taken: float, within: float) -> None:
    seconds = step_seconds(work, GPUS["h200"], ONE_RANK, (8 * groups, 16 // groups), checkpointing) / 16
    assert seconds == pytest.approx(taken, rel=within)


@dataclass(frozen=True)
class Ranks:
    """A line of benchmarks/learner_ranks.jsonl, `alone`: forwards of one rank's groups, and what its rank 0 took."""

    ranks: tuple[int, int]  # how many, ZeRO's stage
    forward: tuple[int, int]  # groups in one, and how many of them
    seconds: float
    peak: float  # GB
    within: float = 0.05  # of the peak


@pytest.mark.parametrize(
    "one",
    [
        Ranks((1, 1), (8, 1), 1.110, 99.2, 0.1),
        Ranks((1, 1), (4, 2), 1.208, 84.7),
        Ranks((2, 1), (4, 3), 1.744, 62.2),
        Ranks((2, 2), (4, 3), 2.205, 58.2),
        Ranks((3, 1), (4, 2), 1.244, 54.7),
        Ranks((3, 2), (4, 2), 1.413, 49.4),
        Ranks((3, 3), (4, 2), 4.130, 46.5),
    ],
    ids=lambda one: "{}:{}, {} a forward".format(*one.ranks, one.forward[0]),
)
def test_several_ranks(work: Work, one: Ranks) -> None:
    groups, num_forwards = one.forward
    seconds = step_seconds(work, GPUS["h200"], one.ranks, (8 * groups, num_forwards), "vision")
    assert seconds == pytest.approx(one.seconds, rel=0.1)
    assert peak_bytes(work, *one.ranks, generations=8 * groups, checkpointing="vision") == pytest.approx(
        one.peak * 1e9, rel=one.within
    )


def test_share_of_the_peak_with_the_optimizer(work: Work) -> None:
    gpu = GPUS["h200"]
    seconds = step_seconds(work, gpu, ONE_RANK, (64, 2), "vision")
    assert 16 * work.learner_flops(8) / seconds / gpu.flops == pytest.approx(0.37, abs=0.01)


def test_tokens_a_second_of_a_rollout_server(planned: Planned, model: Path) -> None:
    config = planned("--image_size=448", "--max_prompt_length=466", "--max_completion_length=256", *ALL_AT_ONCE)
    server = rollout(
        config, work_of(config, read_shape("3b", model), model), GPUS["h200"], (1, 1), prompts=64, room=119e9
    )
    assert server.num_running == 512
    assert 64 * 8 * 256 / server.seconds == pytest.approx(ROLLOUT_TOKENS_PER_SECOND, rel=0.02)


def test_weight_update(planned: Planned, work: Work, model: Path) -> None:
    assert update_seconds(work, 2) == pytest.approx(0.117, rel=0.01)
    assert update_seconds(work, 3) == pytest.approx(0.2, rel=0.01)
    adapters = planned("--lora_rank=8", "--lora_updates=adapter", "--freeze_vision_tower")
    alone = work_of(adapters, work.shape, model)
    assert 0 < update_seconds(alone, 3) < 0.001 and copy_seconds(alone, 3) == 0
    merged = work_of(planned("--lora_rank=8"), work.shape, model)
    assert update_seconds(merged, 2) == pytest.approx(0.2, rel=0.01) and copy_seconds(merged, 2) > 0


def test_what_zero_3_gathers(planned: Planned, work: Work, model: Path) -> None:
    """By layers and passes, and hardly by bytes: a model with larger layers takes about as long."""
    plain, again = gather_seconds(work, GPUS["h200"], 3, False), gather_seconds(work, GPUS["h200"], 3, True)
    assert again / plain == pytest.approx(3 / 2, rel=0.01)
    wide = replace(work, shape=replace(work.shape, num_parameters=8 * work.shape.num_parameters))
    assert gather_seconds(wide, GPUS["h200"], 3, False) < 1.5 * plain
    with_reference = work_of(planned("--kl=k3"), work.shape, model)
    assert gather_seconds(with_reference, GPUS["h200"], 3, False) / plain == pytest.approx(3 / 2, rel=0.01)
    assert copy_seconds(work, 2) == 0 and copy_seconds(work, 3) == pytest.approx(0.27, rel=0.01)
    assert (
        probe_seconds(work, 3, beside=False) > probe_seconds(work, 2, beside=False) == pytest.approx(0.505, abs=0.001)
    )
    assert probe_seconds(work, 2, beside=True) == pytest.approx(0.209, abs=0.001)


@dataclass(frozen=True)
class Measured:
    """A line of benchmarks/end_to_end_gpu.jsonl: learner, rollout and step in seconds, and how near these must be."""

    cut: tuple[int, int, int]  # ranks, ZeRO's stage, servers
    prompts: int
    seconds: tuple[float | None, float | None, float]  # None: of the step alone a record was kept
    within: tuple[float, float, float]
    groups_a_forward: int = 4


MEASURED = {
    # One rank takes ZeRO-1 for 2, which the record says.
    "1+1": Measured((1, 1, 1), 8, (1.159, 0.815, 1.233), (0.1, 0.05, 0.05), groups_a_forward=8),
    "2+2": Measured((2, 1, 2), 24, (1.642, 1.284, 1.938), (0.08, 0.12, 0.13), groups_a_forward=12),
    # Of its servers' half nothing is computed that could be compared: each was at it for 1.04 to 1.24 s for its eight
    # prompts, which one server beside one rank samples in 0.82, and why was not looked into.
    "1+3": Measured((1, 1, 3), 24, (2.943, None, 3.116), (0.05, 0.0, 0.05), groups_a_forward=8),
    "3+1": Measured((3, 1, 1), 24, (1.185, 2.184, 2.448), (0.08, 0.05, 0.05), groups_a_forward=8),
    "3+1 at ZeRO-3": Measured((3, 3, 1), 24, (4.315, None, 5.649), (0.08, 0.0, 0.2)),  # of an earlier version
}


@pytest.mark.parametrize("layout", MEASURED)
def test_whole_steps(layout: str, planned: Planned, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = MEASURED[layout]
    monkeypatch.setattr(measured, "MOST_GROUPS_A_FORWARD", one.groups_a_forward)
    ranks, stage, servers = one.cut
    config = planned(
        f"--gpus={ranks + servers}",
        f"--prompts={one.prompts}",
        "--max_prompt_length=1077",
        "--gradient_checkpointing=vision",
        *ALL_AT_ONCE,
    )
    found = layouts(config, work_of(config, read_shape("3b", model), model), GPUS["h200"])
    (same,) = [
        layout
        for layout in found
        if (layout.learner.num_ranks, layout.learner.zero_stage) == (ranks, stage)
        and (layout.rollout.num_servers, layout.rollout.tensor_parallel_size) == (servers, 1)
    ]
    assert same.prompts_per_step == one.prompts and same.learner.per_forward == 8 * one.groups_a_forward
    for said, was, within in zip(
        (same.learner.seconds, same.rollout.seconds, same.step_seconds), one.seconds, one.within, strict=True
    ):
        assert was is None or said == pytest.approx(was, rel=within)
    assert same.step_seconds / one.seconds[2] - 1 == pytest.approx(STEPS_OFF[layout], abs=0.005)


def test_what_is_said_of_them() -> None:
    """A step of another size must gain more than whole steps are off."""
    assert list(STEPS_OFF) == list(MEASURED)
    assert max(map(abs, STEPS_OFF.values())) < WORTH_ANOTHER_STEP


def test_a_small_cache_runs_fewer_at_once(planned: Planned, work: Work) -> None:
    gpu = GPUS["h200"]
    roomy, tight = (rollout(planned(), work, gpu, (1, 1), prompts=64, room=room) for room in (119e9, 11.8e9))
    assert roomy.num_running == roomy.max_num_seqs == 512 and tight.num_running < 512
    said = rollout(planned("--max_num_seqs=128"), work, gpu, (1, 1), prompts=64, room=119e9)
    assert said.num_running == said.max_num_seqs == 128
    assert tight.bytes_needed == pytest.approx(11.8e9) and tight.seconds > roomy.seconds
    assert rollout(planned(), work, gpu, (1, 1), prompts=64, room=work.weight_bytes).bytes_needed > work.weight_bytes


@pytest.mark.parametrize(("stage", "cut"), [(2, (2, 12)), (3, (0, 14))])
def test_zero_cuts_what_its_paper_says(work: Work, stage: int, cut: tuple[int, int]) -> None:
    whole, shared = cut
    expected = work.shape.num_parameters * (whole + shared / 4)
    assert held_bytes(work, 4, stage) == pytest.approx(expected)


def test_a_reference_and_frozen_or_adapted_parts(planned: Planned, model: Path, work: Work) -> None:
    shape = work.shape

    def memory(*arguments: str) -> tuple[Work, float]:
        changed = work_of(planned(*arguments), shape, model)
        return changed, held_bytes(changed, *ONE_RANK)

    reference, held = memory("--kl=k3")
    assert held - held_bytes(work, *ONE_RANK) == work.weight_bytes
    assert reference.learner_flops(8) == pytest.approx(4 / 3 * work.learner_flops(8))
    frozen, _ = memory("--freeze_vision_tower")
    assert shape.num_parameters - frozen.trained_parameters == shape.vision_parameters
    adapted, held = memory("--lora_rank=8", "--freeze_vision_tower", "--lora_target_modules=q_proj")
    assert adapted.trained_parameters == 36 * 8 * (2048 + 2048)
    assert held == 2 * shape.num_parameters + 14 * adapted.trained_parameters
