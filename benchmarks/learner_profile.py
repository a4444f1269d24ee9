"""What a GPU does in a learner step at the 3B shape: seconds by kind of kernel, how long it was busy, and the largest.

    python benchmarks/learner_profile.py                       # on one GPU; --groups, --per-forward, --checkpointing

The step is `learner_gpu.py shape`'s: made once to warm up, once by the clock alone, and once under torch's profiler.
Kernels are told apart by their names, so a kind is what its kernels are called; what no kind knows is `other`. It
changes nothing and compares with nobody.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from learner_gpu import Way, shape_trainer, take
from shapes import DEFAULT_SHAPE, SHAPES, make_shape
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from versions import print_versions

from mmr1.records import PolicyVersion
from mmr1_learner.plan import StepPlan

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
        with profile(activities=[ProfilerActivity.CUDA, *beside], record_shapes=bool(given.ops)) as found:
            take(trainer, plan, 3)
        kernels = [event for event in found.events() if event.device_type == DeviceType.CUDA]
        report(kernels, given.groups, seconds, given.top)
        if given.ops:
            averages = found.key_averages(group_by_input_shape=True)
            print(averages.table(sort_by="self_device_time_total", row_limit=given.ops, max_name_column_width=60))


if __name__ == "__main__":
    main()
