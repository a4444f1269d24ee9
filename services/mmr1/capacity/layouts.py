"""Every sensible way to share N GPUs between learner and rollout servers, and the one to take.

It knows what a layout needs and how long its step is by `learner.py` and `rollout.py`; it prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mmr1.capacity import measured
from mmr1.capacity.learner import (
    ALIKE,
    MOST_GROWTH,
    WORTH_ANOTHER_STEP,
    Checkpointing,
    Learner,
    best_learner,
    probe_seconds,
    worth_taking,
)
from mmr1.capacity.measured import Gpu
from mmr1.capacity.rollout import Rollout, rollout, update_seconds
from mmr1.capacity.work import Work
from mmr1.config import RunConfig
from mmr1.config.plan_options import PlanConfig

# Options that say how a run is laid out, and are kept where a command line gives them; others of them are chosen.
FIXING = ("learner_processes", "zero_stage", "rollout_replicas", "rollout_tensor_parallel_size")
MOST_GPUS = 64  # that a remedy offers
# Ranks that fill whole machines are taken unless others gain more than this: a machine that holds both sides is harder
# to start and to replace, and the speed between machines is assumed.
WORTH_A_SPLIT_NODE = 0.15


@dataclass(frozen=True, slots=True)
class Layout:
    learner: Learner
    rollout: Rollout
    shared: bool  # learner and rollout server on one GPU
    prompts_per_step: int  # what was asked for, rounded up to whole groups a rank
    dtype: str
    gpu_memory_utilization: float
    learner_fits: bool
    rollout_fits: bool
    update_seconds: float
    probe_seconds: float  # of an update
    waits: bool  # the halves take turns: on one GPU, or because no rollout may be old
    beside: bool  # a version goes to the servers while the next step computes: the learner waits for none of it

    @property
    def fits(self) -> bool:
        return self.learner_fits and self.rollout_fits

    @property
    def step_seconds(self) -> float:
        learner, rollout, update = self.learner.seconds, self.rollout.seconds, self.update_seconds + self.probe_seconds
        if self.waits:
            return learner + rollout + update
        if not self.beside:
            return max(learner, rollout) + update
        return max(learner + measured.BETWEEN_STEPS_SECONDS, rollout + update)

    @property
    def seconds_per_prompt(self) -> float:
        return self.step_seconds / self.prompts_per_step

    @property
    def limit(self) -> str:
        """What to change first: memory where it does not fit, else the slower half."""
        if not self.fits:
            return "memory"
        learner, rollout = self.learner.seconds, self.rollout.seconds
        if self.beside:
            learner += measured.BETWEEN_STEPS_SECONDS
            rollout += self.update_seconds + self.probe_seconds
        return "learner" if learner >= rollout else "rollout"

    def options(self) -> dict[str, Any]:
        """What a run's file must say to be laid out like this."""
        chosen: dict[str, Any] = {
            "dtype": self.dtype,
            "learner_processes": self.learner.num_ranks,
            "zero_stage": self.learner.zero_stage,
            "per_device_batch_size": self.learner.per_forward,
            "gradient_accumulation_steps": self.learner.num_forwards,
            "gradient_checkpointing": self.learner.gradient_checkpointing,
            "rollout_replicas": self.rollout.num_servers,
            "rollout_tensor_parallel_size": self.rollout.tensor_parallel_size,
            "max_concurrent_prompts": self.rollout.max_concurrent_prompts,
            "max_num_seqs": self.rollout.max_num_seqs,
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
    fixed: frozenset[str] = frozenset()  # options of the command line

    @property
    def memory_bytes(self) -> float:
        """Of one GPU."""
        return self.gpu.memory_gib * 2**30


def layouts(config: PlanConfig, work: Work, gpu: Gpu, fixed: frozenset[str] = frozenset()) -> list[Layout]:
    """All that use every GPU: those that fit first, then the fastest a prompt.

    The step stays about as large as it is; where all have more ranks than there are prompts, as small as may be.
    Those that contradict the options named in `fixed` are left out; empty where all do.
    """
    cuts = _cuts(config, work, gpu, fixed)
    found = [_layout(config, work, gpu, cut, fixed) for cut in cuts]
    if not found:
        return []
    smallest = min(layout.prompts_per_step for layout in found)
    most = max(smallest, int((1 + MOST_GROWTH) * config.planned_prompts))
    found = [layout for layout in found if layout.prompts_per_step <= most]
    return sorted(found, key=lambda one: (not one.fits, one.seconds_per_prompt))


def recommended(found: Sequence[Layout], prompts: int, per_node: int = 8) -> Layout | None:
    """The simplest of those that are about as fast as the fastest that fits; None: none fits.

    One whose step is not of `prompts` prompts only where it is clearly better than all whose step is, and one whose
    ranks share a machine with servers, where there are several machines of `per_node` GPUs, likewise.
    """
    fitting = [layout for layout in found if layout.fits]
    if not fitting:
        return None
    fitting = worth_taking(
        fitting, lambda one: one.prompts_per_step == prompts, lambda one: one.seconds_per_prompt, WORTH_ANOTHER_STEP
    )
    fitting = worth_taking(
        fitting, lambda one: fills_nodes(one, per_node), lambda one: one.seconds_per_prompt, WORTH_A_SPLIT_NODE
    )
    fastest = min(layout.seconds_per_prompt for layout in fitting)
    alike = [layout for layout in fitting if layout.seconds_per_prompt <= (1 + ALIKE) * fastest]
    return min(
        alike,
        key=lambda one: (one.learner.zero_stage, one.rollout.tensor_parallel_size, one.seconds_per_prompt),
    )


def fills_nodes(layout: Layout, per_node: int) -> bool:
    """Whether ranks and servers have machines of their own, where one machine does not hold both."""
    num_gpus = layout.learner.num_ranks + layout.rollout.num_servers * layout.rollout.tensor_parallel_size
    return num_gpus <= per_node or layout.learner.num_ranks % per_node == 0


def enough_gpus(config: PlanConfig, work: Work, gpu: Gpu, fixed: frozenset[str]) -> int | None:
    """The least number above the run's that holds a layout; None: not even MOST_GPUS.

    Each side is looked at once for each way to cut it: whether it fits does not depend on the other.
    """
    room, share = gpu.memory_gib * 2**30, config.gpu_memory_utilization
    learner_room = (1 - measured.KEPT_FREE) * room
    prompts, ways = config.planned_prompts, _ways(config)
    most = math.inf if "learner_processes" in fixed else (1 + MOST_GROWTH) * prompts * work.num_generations

    @cache
    def learner_fits(num_ranks: int, stage: int) -> bool:
        left = learner_room - _aside(config, stage, shared=False)
        learner = best_learner(work, gpu, (num_ranks, stage), prompts, ways, left)
        return learner.peak_bytes <= left and learner.generations_per_step <= most

    @cache
    def server_fits(size: int) -> bool:
        return rollout(config, work, gpu, (1, size), prompts, share * room).bytes_needed <= share * room

    for num_gpus in range(config.gpus + 1, MOST_GPUS + 1):
        cuts = _cuts(config.model_copy(update={"gpus": num_gpus}), work, gpu, fixed)
        if any(learner_fits(cut.num_ranks, cut.zero_stage) and server_fits(cut.size) for cut in cuts):
            return num_gpus
    return None


@dataclass(frozen=True, slots=True)
class _Cut:
    num_ranks: int
    zero_stage: int
    num_servers: int
    size: int
    shared: bool = False


def _cuts(config: PlanConfig, work: Work, gpu: Gpu, fixed: frozenset[str]) -> Iterator[_Cut]:
    """Those that the fixed options allow."""
    for cut in _all_cuts(config, work, gpu, fixed):
        said = dict(zip(FIXING, (cut.num_ranks, cut.zero_stage, cut.num_servers, cut.size), strict=True))
        if all(said[name] == getattr(config, name) for name in fixed & said.keys()):
            yield cut


def _all_cuts(config: PlanConfig, work: Work, gpu: Gpu, fixed: frozenset[str]) -> Iterator[_Cut]:
    """Ranks first, the rest in servers of equal size. One rank has nothing to cut at ZeRO-2 or 3."""
    one, many = ((config.zero_stage,),) * 2 if "zero_stage" in fixed else ((1,), (1, 2, 3))
    if config.gpus == 1:
        yield _Cut(1, one[0], 1, 1, shared=True)
        return
    heads = math.gcd(work.shape.text.num_heads, work.shape.vision.num_heads)
    for num_ranks in range(1, config.gpus):
        rest = config.gpus - num_ranks
        sizes = [n for n in (1, 2, 4, 8) if rest % n == 0 and heads % n == 0]  # what vLLM can cut the heads by
        for size in sizes:
            if config.gpus > gpu.per_node and (num_ranks % size or gpu.per_node % size):
                continue  # a server would lie on two machines
            for stage in many if num_ranks > 1 else one:
                yield _Cut(num_ranks, stage, rest // size, size)


def _layout(config: PlanConfig, work: Work, gpu: Gpu, cut: _Cut, fixed: frozenset[str]) -> Layout:
    """On a GPU that both halves share: with the learner that makes the step shortest, and for vLLM what it leaves."""
    if not cut.shared or "gpu_memory_utilization" in fixed:
        return _at_share(config, work, gpu, cut, config.gpu_memory_utilization)
    shares = (twentieth / 20 for twentieth in range(1, 20))
    found = [_at_share(config, work, gpu, cut, share, measured.SHARED_RESERVE) for share in shares]
    # What nothing fits is shown as it is nearest to: with what a server needs at least.
    best = min(found, key=lambda one: (not one.fits, not one.rollout_fits, one.seconds_per_prompt if one.fits else 0.0))
    left = 1 - measured.KEPT_FREE - measured.SHARED_RESERVE - best.learner.peak_bytes / (gpu.memory_gib * 2**30)
    share = math.floor(100 * left) / 100
    if not best.fits or share <= best.gpu_memory_utilization:
        return best
    return _at_share(config, work, gpu, cut, share, measured.SHARED_RESERVE)


def _at_share(config: PlanConfig, work: Work, gpu: Gpu, cut: _Cut, share: float, reserve: float = 0.0) -> Layout:
    """`reserve` is the share of a GPU that is left between both halves."""
    total = gpu.memory_gib * 2**30
    aside = _aside(config, cut.zero_stage, cut.shared)
    room = (1 - measured.KEPT_FREE - (share + reserve if cut.shared else 0)) * total - aside
    learner = best_learner(work, gpu, (cut.num_ranks, cut.zero_stage), config.planned_prompts, _ways(config), room)
    prompts = learner.generations_per_step // work.num_generations
    server = rollout(config, work, gpu, (cut.num_servers, cut.size), prompts, share * total)
    return Layout(
        learner,
        server,
        cut.shared,
        prompts,
        config.planned_dtype,
        share,
        learner_fits=learner.peak_bytes <= room,
        rollout_fits=server.bytes_needed <= share * total,
        update_seconds=update_seconds(work, cut.zero_stage, between_nodes=config.gpus > gpu.per_node),
        probe_seconds=probe_seconds(work, cut.zero_stage, beside=aside > 0),
        waits=cut.shared or config.max_off_policy_steps == 0,
        beside=aside > 0,
    )


def _aside(config: RunConfig, stage: int, shared: bool) -> float:
    """Bytes of a learner GPU that an update takes beside a step; 0 where it has the GPU for itself."""
    alone = shared or config.max_off_policy_steps == 0 or stage == 3 or config.lora_rank > 0
    return 0.0 if alone else measured.BESIDE_BYTES


def _ways(config: RunConfig) -> tuple[Checkpointing, ...]:
    """What the run says of recomputation, else what was measured to be fast, and what takes the least memory."""
    if "gradient_checkpointing" in config.model_fields_set:
        return (config.gradient_checkpointing,)
    return (False if config.freeze_vision_tower else "vision", True)
