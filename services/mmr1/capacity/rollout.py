"""A rollout server's memory and seconds: prompts by multiplications, decoding by bytes and by what runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmr1.capacity import measured
from mmr1.capacity.measured import Gpu
from mmr1.capacity.work import Work
from mmr1.config import RunConfig


@dataclass(frozen=True, slots=True)
class Rollout:
    num_servers: int
    tensor_parallel_size: int
    max_concurrent_prompts: int
    max_num_seqs: int
    num_running: float  # completions that a server decodes at once
    bytes_needed: float  # on each of its GPUs
    seconds: float  # for the step's prompts, of all servers together


def rollout(config: RunConfig, work: Work, gpu: Gpu, servers: tuple[int, int], prompts: int, room: float) -> Rollout:
    """`servers`: how many, and GPUs of each; for `prompts` prompts a step, with `room` bytes of each GPU.

    As many completions run at once as the options and the cache allow, one at least. What GPUs of one server say to
    each other is not counted: it was not measured.
    """
    num_servers, size = servers
    # The feeder keeps so many prompts out and no more; see docs/walk.md.
    outstanding = (config.max_off_policy_steps + 1) * prompts * work.num_generations / num_servers
    at_once, sequences = _limits(config, work, outstanding)
    wanted = min(sequences, at_once * work.num_generations, outstanding)
    fixed = work.weight_bytes / size + measured.ENGINE_BYTES
    # A prompt's cache is shared by its completions.
    cache = (work.prompt_tokens / work.num_generations + work.completion_tokens) * work.cache_bytes_per_token
    running = max(1.0, min(wanted, (room - fixed) * size / cache))
    prefill = work.prefill_flops() / (measured.PREFILL_FRACTION * size * gpu.flops)
    decode = _decode_step_seconds(work, gpu, size, running) * work.completion_tokens
    seconds = prompts / num_servers * (prefill + decode * work.num_generations / running)
    return Rollout(num_servers, size, at_once, sequences, running, fixed + running * cache / size, seconds)


def _limits(config: RunConfig, work: Work, outstanding: float) -> tuple[int, int]:
    """Prompts and completions at once: a run's own where it names them, else enough for all that are out, up to MOST.

    A decoding step of a small model takes hardly longer for many completions than for few.
    """
    given = config.model_fields_set
    most = min(measured.MOST_SEQUENCES, math.ceil(outstanding))
    sequences = config.max_num_seqs if "max_num_seqs" in given else max(config.max_num_seqs, most)
    prompts = -(-most // work.num_generations)
    named = "max_concurrent_prompts" in given
    return (config.max_concurrent_prompts if named else max(config.max_concurrent_prompts, prompts)), sequences


def _decode_step_seconds(work: Work, gpu: Gpu, size: int, running: float) -> float:
    """One token of every running completion: weights once, the cache of each, half grown on average, and its care."""
    cache = running * (work.prompt_tokens + work.completion_tokens / 2) * work.cache_bytes_per_token
    reading = (work.decoder_bytes + cache) / (measured.DECODE_FRACTION * size * gpu.bandwidth)
    return reading + running * measured.SECONDS_PER_RUNNING


def update_seconds(work: Work, stage: int, *, between_nodes: bool = False) -> float:
    """Of one weight update, the probe not included. Each step has one."""
    slowest = measured.BETWEEN_NODES_BYTES_PER_SECOND if between_nodes else measured.LINK_BYTES_PER_SECOND
    if work.sends_adapters:
        sent = work.number_bytes * work.adapter_parameters
        return sent / min(slowest, measured.UPDATE_BYTES_PER_SECOND)
    from_host = stage == 3 or not work.trains_all
    rate = measured.HOST_UPDATE_BYTES_PER_SECOND if from_host else measured.UPDATE_BYTES_PER_SECOND
    return work.weight_bytes / min(slowest, rate)
