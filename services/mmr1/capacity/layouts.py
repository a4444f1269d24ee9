"""Every sensible way to share N GPUs between learner and rollout servers, and the one to take.

It knows what a layout needs and how long its step is by `learner.py` and `rollout.py`; it prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmr1.capacity import measured
from mmr1.capacity.learner import ALIKE, MOST_GROWTH, Checkpointing, Learner, best_learner, probe_seconds, worth_taking
from mmr1.capacity.measured import Gpu
from mmr1.capacity.rollout import Rollout, rollout, update_seconds
from mmr1.capacity.work import Work
from mmr1.config import RunConfig
from mmr1.config.plan_options import PlanConfig


@dataclass(frozen=True, slots=True)
class Layout:
    learner: Learner
    rollout: Rollout
    shared: bool  # learner and rollout server on one GPU
    prompts_per_step: int  # what was asked for, rounded up to whole groups a rank
    gpu_memory_utilization: float
    learner_fits: bool
    rollout_fits: bool
    update_seconds: float
    probe_seconds: float  # what the learner waits for the probe of an update
    waits: bool  # the halves take turns: on one GPU, or because no rollout may be old

    @property
    def fits(self) -> bool:
        return self.learner_fits and self.rollout_fits

    @property
    def step_seconds(self) -> float:
        halves = self.learner.seconds, self.rollout.seconds
        return (sum(halves) if self.waits else max(halves)) + self.update_seconds + self.probe_seconds

    @property
    def seconds_per_prompt(self) -> float:
        return self.step_seconds / self.prompts_per_step

    @property
    def limit(self) -> str:
        """What to change first: memory where it does not fit, else the slower half."""
        if not self.fits:
            return "memory"
        return "learner" if self.learner.seconds >= self.rollout.seconds else "rollout"

    def options(self) -> dict[str, Any]:
        """What a run's file must say to be laid out like this."""
        chosen: dict[str, Any] = {
            "dtype": "bfloat16",
            "learner_processes": self.learner.num_ranks,
            "zero_stage": self.learner.zero_stage,
            "per_device_batch_size": self.learner.per_forward,
            "gradient_accumulation_steps": self.learner.num_forwards,
            "gradient_checkpointing": self.learner.gradient_checkpointing,
            "rollout_replicas": self.rollout.num_servers,
            "rollout_tensor_parallel_size": self.rollout.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
        }
        return chosen


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is printed, or written as JSON."""

    config: PlanConfig
    work: Work
    gpu: Gpu
    layouts: tuple[Layout, ...]
    chosen: Layout | None

    @property
    def memory_bytes(self) -> float:
        """Of one GPU."""
        return self.gpu.memory_gib * 2**30


def layouts(config: PlanConfig, work: Work, gpu: Gpu) -> list[Layout]:
    """All that use every GPU: those that fit first, then the fastest a prompt.

    The step stays about as large as it is; where all have more ranks than there are prompts, as small as may be.
    """
    found = [_layout(config, work, gpu, cut, config.planned_prompts) for cut in _cuts(work, config.gpus)]
    smallest = min(layout.prompts_per_step for layout in found)
    most = max(smallest, int((1 + MOST_GROWTH) * config.planned_prompts))
    found = [layout for layout in found if layout.prompts_per_step <= most]
    return sorted(found, key=lambda one: (not one.fits, one.seconds_per_prompt))


def recommended(found: Sequence[Layout], prompts: int) -> Layout | None:
    """The simplest of those that are about as fast as the fastest that fits; None: none fits.

    One whose step is not of `prompts` prompts only where it is clearly better than all whose step is.
    """
    fitting = [layout for layout in found if layout.fits]
    if not fitting:
        return None
    fitting = worth_taking(
        fitting, lambda layout: layout.prompts_per_step == prompts, lambda layout: layout.seconds_per_prompt
    )
    fastest = min(layout.seconds_per_prompt for layout in fitting)
    alike = [layout for layout in fitting if layout.seconds_per_prompt <= (1 + ALIKE) * fastest]
    return min(
        alike,
        key=lambda one: (one.learner.zero_stage, one.rollout.tensor_parallel_size, one.seconds_per_prompt),
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    num_ranks: int
    zero_stage: int
    num_servers: int
    size: int
    shared: bool = False


def _cuts(work: Work, num_gpus: int) -> Iterator[_Cut]:
    """Ranks first, the rest in servers of equal size. One rank has nothing to cut at ZeRO-3."""
    if num_gpus == 1:
        yield _Cut(1, 2, 1, 1, shared=True)
        return
    heads = math.gcd(work.shape.text.num_heads, work.shape.vision.num_heads)
    for num_ranks in range(1, num_gpus):
        rest = num_gpus - num_ranks
        sizes = [n for n in (1, 2, 4, 8) if rest % n == 0 and heads % n == 0]  # what vLLM can cut the heads by
        for size in sizes:
            for stage in (2, 3) if num_ranks > 1 else (2,):
                yield _Cut(num_ranks, stage, rest // size, size)


def _layout(config: RunConfig, work: Work, gpu: Gpu, cut: _Cut, prompts: int) -> Layout:
    """On a GPU that both halves share, with the share of its memory that makes the step shortest."""
    if not cut.shared:
        return _at_share(config, work, gpu, cut, prompts, config.gpu_memory_utilization)
    shares = (twentieth / 20 for twentieth in range(1, 20))
    found = [_at_share(config, work, gpu, cut, prompts, share) for share in shares]
    # What nothing fits is shown as it is nearest to: with what a server needs at least.
    return min(found, key=lambda one: (not one.fits, not one.rollout_fits, one.seconds_per_prompt if one.fits else 0.0))


def _at_share(config: RunConfig, work: Work, gpu: Gpu, cut: _Cut, prompts: int, share: float) -> Layout:
    total = gpu.memory_gib * 2**30
    room = (1 - measured.KEPT_FREE - (share if cut.shared else 0)) * total
    learner = best_learner(work, gpu, (cut.num_ranks, cut.zero_stage), prompts, _ways(config), room)
    prompts = learner.generations_per_step // work.num_generations
    server = rollout(config, work, gpu, (cut.num_servers, cut.size), prompts, share * total)
    return Layout(
        learner,
        server,
        cut.shared,
        prompts,
        share,
        learner_fits=learner.peak_bytes <= room,
        rollout_fits=server.bytes_needed <= share * total,
        update_seconds=update_seconds(work, cut.zero_stage),
        probe_seconds=probe_seconds(work, cut.zero_stage),
        waits=cut.shared or config.max_off_policy_steps == 0,
    )


def _ways(config: RunConfig) -> tuple[Checkpointing, ...]:
    """What the run says of recomputation, else what was measured to be fast, and what takes the least memory."""
    if "gradient_checkpointing" in config.model_fields_set:
        return (config.gradient_checkpointing,)
    return (False if config.freeze_vision_tower else "vision", True)
