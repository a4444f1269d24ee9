"""What a GPU does in a learner step at the 3B shape: seconds by kind of kernel, how long it was busy, and the largest.

    python benchmarks/learner_profile.py                       # on one GPU; --groups, --per-forward, --checkpointing

The step is `learner_gpu.py shape`'s: made to warm up, by the clock alone, under torch's profiler, and once with every
place noted where the host waits for the GPU. Kernels are told apart by their names, so a kind is what its kernels are
called; what no kind knows is `other`. It changes nothing and compares with nobody.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from learner_gpu import Way, shape_trainer, take
from shapes import DEFAULT_SHAPE, SHAPES, make_shape
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from versions import print_versions

from mmr1.records import PolicyVersion
from mmr1_learner.plan import StepPlan
from mmr1_learner.trainer import Trainer

# The first kind whose word is in a kernel's name has it.
KINDS = {
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "splitk", "cublas"),
    "norms and gates": ("rms_norm", "silu", "swiglu", "layer_norm"),
    "optimizer": ("adam", "multi_tensor", "lpnorm"),
    "copies": ("memcpy", "memset", "copy", "cat", "fill"),
    "picking and placing": ("index", "gather", "scatter", "embedding", "sort", "roll"),
    "sums": ("reduce", "softmax", "scan"),
    "one element at a time": ("elementwise", "triton"),
}


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def busy(kernels: list[Any]) -> float:
    """Seconds in which at least one ran."""
    total, reached = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda one: one.time_range.start):
        first, last = max(kernel.time_range.start, reached), kernel.time_range.end
        total += max(0.0, last - first)
        reached = max(reached, last)
    return total / 1e6


def idle_by_phase(kernels: list[Any], phases: list[tuple[str, int, int]]) -> dict[str, list[float]]:
    """[seconds in which no kernel ran, seconds] of each phase of the host's, which may launch what runs in the next."""
    found: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    runs = sorted((kernel.start_ns(), kernel.start_ns() + kernel.duration_ns()) for kernel in kernels)
    for phase, first, last in phases:
        reached, idle = first, 0
        for begin, end in runs:
            if begin >= last:
                break
            idle += max(0, min(begin, last) - reached)
            reached = max(reached, min(end, last))
        found[phase][0] += (idle + max(0, last - reached)) / 1e9
        found[phase][1] += (last - first) / 1e9
    return {phase: [round(part, 3) for part in parts] for phase, parts in found.items()}


def note_phases(trainer: Trainer) -> list[tuple[str, int, int]]:
    """The trainer's phases from now on, with beginning and end in nanoseconds of the clock that the profiler has."""
    noted: list[tuple[str, int, int]] = []
    usual = trainer._timed

    @contextmanager
    def timed(phase: str) -> Iterator[None]:
        began = time.time_ns()
        with usual(phase):
            yield
        noted.append((phase, began, time.time_ns()))

    trainer._timed = timed  # type: ignore[method-assign]
    return noted


def waits(step: Callable[[], Any]) -> dict[str, int]:
    """Where in Python the host waited for the GPU, and how often, most often first."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = (
        f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)
    )
    return dict(collections.Counter(places).most_common())


def report(kernels: list[Any], num_groups: int, seconds: float, top: int) -> None:
    kinds: dict[str, list[float]] = collections.defaultdict(list)
    names: dict[str, list[float]] = collections.defaultdict(list)
    for kernel in kernels:
        took = kernel.time_range.elapsed_us() / 1e6
        kinds[kind_of(kernel.name)].append(took)
        names[kernel.name].append(took)
    line = {
        "groups": num_groups,
        "seconds": round(seconds, 3),
        "busy": round(busy(kernels), 3),
        "kinds": {kind: [round(sum(took), 3), len(took)] for kind, took in sorted(kinds.items(), key=_longest)},
    }
    print(json.dumps(line), flush=True)
    for name, took in sorted(names.items(), key=_longest)[:top]:
        print(f"{1e3 * sum(took):9.2f} ms {len(took):6} x  {kind_of(name):<22} {name[:150]}", flush=True)


def _longest(item: tuple[str, list[float]]) -> float:
    return -sum(item[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=8, help="in the step")
    parser.add_argument("--per-forward", type=int, default=4, help="groups")
    parser.add_argument("--checkpointing", default="vision", help="gradient_checkpointing: true, false or vision")
    parser.add_argument("--model", type=Path, help="a folder; without it one of --shape is made")
    parser.add_argument("--shape", choices=SHAPES, default=DEFAULT_SHAPE)
    parser.add_argument("--top", type=int, default=30, help="kernels by name")
    parser.add_argument("--ops", type=int, default=0, help="operations with their shapes, by the GPU's time")
    given = parser.parse_args()
    print_versions(**vars(given))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model or folder / "model"
        if given.model is None:
            make_shape(model, given.shape)
        way = Way(given.per_forward, given.checkpointing)
        trainer, groups = shape_trainer(folder, model, given.groups, way)
        plan = StepPlan(0, tuple(groups), version=PolicyVersion(1, 0))
        for step in range(3):
            began = time.perf_counter()
            take(trainer, plan, step)
            seconds = time.perf_counter() - began
        beside = [ProfilerActivity.CPU] if given.ops else []
        phases = note_phases(trainer)
        with profile(activities=[ProfilerActivity.CUDA, *beside], record_shapes=bool(given.ops)) as found:
            take(trainer, plan, 3)
        kernels = [event for event in found.events() if event.device_type == DeviceType.CUDA]
        report(kernels, given.groups, seconds, given.top)
        raw = [one for one in found.profiler.kineto_results.events() if one.device_type() == DeviceType.CUDA]
        print(json.dumps({"idle": idle_by_phase(raw, phases)}))
        print(json.dumps({"waits": waits(lambda: take(trainer, plan, 4))}), flush=True)
        if given.ops:
            averages = found.key_averages(group_by_input_shape=True)
            print(averages.table(sort_by="self_device_time_total", row_limit=given.ops, max_name_column_width=60))


if __name__ == "__main__":
    main()
