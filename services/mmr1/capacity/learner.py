"""A learner rank's memory and seconds, by ZeRO stage, number of ranks and what goes through one forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from mmr1.capacity import measured
from mmr1.capacity.measured import Gpu
from mmr1.capacity.work import Work

Checkpointing = bool | Literal["vision"]
Choice = TypeVar("Choice")

# Two ways or two layouts closer than this are alike, as far as can be told beforehand.
ALIKE = 0.05
MOST_GROWTH = 0.25  # of a step's prompts, so that they can be shared out well
# A step of another number of prompts is another run: learning rate and number of steps were chosen for the one that was
# asked for. So it must gain more a prompt than whole steps are off after fitting (`measured.STEPS_OFF`), and than most
# were off that had been predicted.
WORTH_ANOTHER_STEP = 0.30


@dataclass(frozen=True, slots=True)
class Learner:
    """How the ranks work, what each of them takes, and what a step of all of them costs."""

    num_ranks: int
    zero_stage: int
    per_forward: int  # generations: the option per_device_batch_size
    num_forwards: int  # a step and rank: the option gradient_accumulation_steps
    gradient_checkpointing: Checkpointing
    peak_bytes: float
    seconds: float  # a step, the next included
    copy_seconds: float  # of whole weights, into rank 0's memory

    @property
    def generations_per_step(self) -> int:
        return self.num_ranks * self.per_forward * self.num_forwards


def held_bytes(work: Work, num_ranks: int, zero_stage: int) -> float:
    """Between steps: weights, master weights and moments, and the reference's weights where there is one of its own."""
    weights = work.weight_bytes + (0 if work.trains_all else work.number_bytes * work.adapter_parameters)
    reference = work.weight_bytes if work.with_reference and work.trains_all else 0
    cut = num_ranks if zero_stage == 3 else 1
    each = measured.OPTIMIZER_BYTES if work.number_bytes == 2 else measured.FLOAT32_OPTIMIZER_BYTES
    return (weights + reference) / cut + each * work.trained_parameters / _optimizer_cut(work, num_ranks, zero_stage)


def _optimizer_cut(work: Work, num_ranks: int, zero_stage: int) -> int:
    """Over how many ranks: bfloat16 takes stage 1 for 0."""
    return num_ranks if zero_stage or work.number_bytes == 2 else 1


def kept_bytes(work: Work, generations: int, checkpointing: Checkpointing) -> float:
    """Activations of one forward. A part that is computed again keeps each layer's input, and one layer whole."""
    text, vision = work.shape.text, work.shape.vision
    patches = work.num_prefixes(generations) * work.num_calls * work.patches
    parts = [(text, work.text_tokens(generations), checkpointing is True)]
    if work.trains_vision:
        parts.append((vision, patches, bool(checkpointing)))
    total = 0.0
    for stack, tokens, again in parts:
        layer = measured.KEPT_HIDDEN * stack.hidden + measured.KEPT_INTERMEDIATE * stack.intermediate
        total += (
            work.number_bytes
            * tokens
            * (stack.num_layers * stack.hidden + layer if again else stack.num_layers * layer)
        )
    return total


def peak_bytes(work: Work, num_ranks: int, zero_stage: int, generations: int, checkpointing: Checkpointing) -> float:
    """The larger of the backward pass and the optimizer's step, above what is held."""
    trained = work.trained_parameters / _optimizer_cut(work, num_ranks, zero_stage)
    # The table of tokens is gathered whole, as one layer is.
    numbers = (
        measured.GATHERED_LAYERS * work.shape.text.layer_parameters + work.shape.vocab_size * work.shape.text.hidden
    )
    gathered = work.number_bytes * numbers if zero_stage == 3 else 0
    gradients = work.trained_parameters / (num_ranks if zero_stage >= 2 else 1)
    backward = (
        measured.GRADIENT_BYTES * work.number_bytes / 2 * gradients
        + kept_bytes(work, generations, checkpointing)
        + gathered
    )
    return held_bytes(work, num_ranks, zero_stage) + max(backward, measured.STEP_BYTES * trained)


def step_seconds(
    work: Work, gpu: Gpu, ranks: tuple[int, int], forward: tuple[int, int], checkpointing: Checkpointing
) -> float:
    """Of one step. `ranks`: how many, and ZeRO's stage; `forward`: generations in one, and how many of them."""
    (num_ranks, stage), (generations, num_forwards) = ranks, forward
    twice = checkpointing is True
    layers = work.shape.text.num_layers + work.shape.vision.num_layers
    computing = work.learner_flops(generations, twice=twice) / (measured.LEARNER_FRACTION * gpu.flops)
    launching = layers * measured.LAUNCH_SECONDS_PER_LAYER * (4 / 3 if twice else 1)
    cut = _optimizer_cut(work, num_ranks, stage)
    optimizer = work.trained_parameters / cut / measured.OPTIMIZER_PARAMETERS_PER_SECOND
    shared = work.number_bytes * work.trained_parameters / link_bytes_per_second(gpu, num_ranks) * _others(num_ranks)
    num_sums = num_forwards if stage >= 2 else 1
    summing = layers * measured.SUMMING_SECONDS_PER_LAYER if stage < 3 and num_ranks > 1 else 0.0
    sums = num_sums * (shared + summing)
    # Each rank steps its share, and all get it; with ZeRO-3 weights stay cut, and without ZeRO each steps all.
    moving = sums + (shared if stage < 3 and cut > 1 else 0.0)
    if stage == 3:
        moving += num_forwards * gather_seconds(work, gpu, num_ranks, checkpointing)
    return num_forwards * (computing + launching) + optimizer + moving + copy_seconds(work, stage)


def link_bytes_per_second(gpu: Gpu, num_members: int) -> float:
    """Of the slowest link that so many GPUs, taken machine by machine, have among them."""
    return measured.LINK_BYTES_PER_SECOND if num_members <= gpu.per_node else measured.BETWEEN_NODES_BYTES_PER_SECOND


def _others(num_ranks: int) -> float:
    """The share of what all hold that one rank must get from the others."""
    return (num_ranks - 1) / num_ranks


def gather_seconds(work: Work, gpu: Gpu, num_ranks: int, checkpointing: Checkpointing) -> float:
    """ZeRO-3's: in each pass of a forward and its backward through a layer, its weights come from all ranks."""
    text, vision = work.shape.text, work.shape.vision
    text_passes = 2 + (checkpointing is True) + work.with_reference
    vision_passes = 1 + work.with_reference + (1 + bool(checkpointing) if work.trains_vision else 0)
    layers = text_passes * text.num_layers + vision_passes * vision.num_layers
    gathered = text_passes * work.weight_bytes * _others(num_ranks)
    return layers * measured.GATHER_SECONDS_PER_LAYER + gathered / link_bytes_per_second(gpu, num_ranks)


def copy_seconds(work: Work, stage: int) -> float:
    """Of the whole weights that rank 0 sends, where its own are cut, or are not what is sent because of adapters."""
    if work.sends_adapters:
        return 0.0
    if stage == 3:
        return work.weight_bytes / measured.WHOLE_COPY_BYTES_PER_SECOND
    return 0.0 if work.trains_all else work.weight_bytes / measured.HOST_UPDATE_BYTES_PER_SECOND


def probe_seconds(work: Work, stage: int, *, beside: bool) -> float:
    """Of the probe of an update. Beside a step servers sample nothing until they have answered; else all wait for all.

    Not beside a step the learner's comparing counts too, and ZeRO-3's gathers for it.
    """
    if beside:
        return measured.PROBE_SECONDS
    layers = work.shape.text.num_layers + work.shape.vision.num_layers
    gathers = layers * measured.GATHER_SECONDS_PER_LAYER if stage == 3 else 0.0
    return measured.PROBE_SECONDS + measured.COMPARING_SECONDS + gathers


def best_learner(
    work: Work, gpu: Gpu, ranks: tuple[int, int], prompts: int, ways: Sequence[Checkpointing], room: float
) -> Learner:
    """The fastest way to pass `prompts` through `ranks` (how many, ZeRO's stage) in `room` bytes; else the smallest.

    Of ways that are alike it is the one with the fewest prompts, then one that does not compute everything twice, which
    was not measured of late, and then the one with the most in a forward. A forward holds
    whole groups where it can: part of one computes its prompt anew. The step grows a little where the ranks cannot
    share its prompts evenly, or where that is much faster: 13 groups a rank go one by one, 14 by sevens.
    """
    num_ranks, zero_stage = ranks
    groups = -(-prompts // num_ranks)
    most = max(groups, int((1 + MOST_GROWTH) * prompts) // num_ranks) * work.num_generations
    whole = [n * work.num_generations for n in range(1, measured.MOST_GROUPS_A_FORWARD + 1)]
    parts = [n for n in range(1, work.num_generations) if work.num_generations % n == 0]
    found = []
    for per_forward in whole + parts:
        num_forwards = -(-groups * work.num_generations // per_forward)
        if per_forward * num_forwards > most:
            continue
        for way in ways:
            peak = peak_bytes(work, num_ranks, zero_stage, per_forward, way)
            seconds = step_seconds(work, gpu, ranks, (per_forward, num_forwards), way)
            copying = copy_seconds(work, zero_stage)
            found.append(Learner(num_ranks, zero_stage, per_forward, num_forwards, way, peak, seconds, copying))
    fitting = [learner for learner in found if learner.peak_bytes <= room]
    if not fitting:
        return min(found, key=lambda one: one.peak_bytes)
    kept = prompts * work.num_generations
    fitting = worth_taking(
        fitting, lambda one: one.generations_per_step == kept, _seconds_per_generation, WORTH_ANOTHER_STEP
    )
    fastest = min(map(_seconds_per_generation, fitting))
    alike = [one for one in fitting if _seconds_per_generation(one) <= (1 + ALIKE) * fastest]
    return min(alike, key=_simplest)


def _simplest(learner: Learner) -> tuple[float, ...]:
    return learner.generations_per_step, learner.gradient_checkpointing is True, -learner.per_forward, learner.seconds


def _seconds_per_generation(learner: Learner) -> float:
    return learner.seconds / learner.generations_per_step


def worth_taking(
    choices: Sequence[Choice], keeps: Callable[[Choice], bool], cost: Callable[[Choice], float], worth: float
) -> list[Choice]:
    """Those that keep something; all, where none does or one of the others is better by more than that is worth."""
    keeping = [choice for choice in choices if keeps(choice)]
    if not keeping or min(map(cost, choices)) * (1 + worth) < min(map(cost, keeping)):
        return list(choices)
    return keeping
