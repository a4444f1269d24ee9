"""The learner on a GPU: the same step as on a CPU, the loss's memory at a real vocabulary, and a step at the 3B shape.

    python benchmarks/learner_gpu.py agree     # the small model's step at every ZeRO stage against the CPU's
    python benchmarks/learner_gpu.py memory    # of the loss at hidden 2048, vocabulary 151,936, as completions grow
    python benchmarks/learner_gpu.py shape     # Qwen2.5-VL-3B's shape with random weights: ms and GB a group
    python benchmarks/learner_gpu.py shape --shape qwen2_vl_2b --ways 5 6

`agree` starts a process of its own for each way. It measures no sampling, no weight update and no quality.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from learner_rows import MODEL, NUM_GENERATIONS, make_config, spread
from learner_step import DEMO, free_port, make_groups
from safetensors.torch import load_file
from shapes import DEFAULT_SHAPE, SHAPES, SIDE, make_shape
from versions import print_versions

from mmr1.config import RunConfig
from mmr1.families import FAMILIES
from mmr1.records import Group, PolicyVersion
from mmr1_learner import model as learner_model
from mmr1_learner.loss.token_stats import token_stats
from mmr1_learner.model import PromptEncoder, load_policy
from mmr1_learner.plan import StepPlan
from mmr1_learner.ranks import join_ranks
from mmr1_learner.trainer import Trainer

WAYS = {  # name: where, dtype, ZeRO stage, ranks
    "cpu float32": ("cpu", "float32", 0, 1),
    "cuda float32 ZeRO-0": ("cuda", "float32", 0, 1),
    "cuda float32 ZeRO-1": ("cuda", "float32", 1, 1),
    "cuda float32 ZeRO-3": ("cuda", "float32", 3, 1),
    "cuda bfloat16 ZeRO-1": ("cuda", "bfloat16", 1, 1),
    "cuda bfloat16 ZeRO-3": ("cuda", "bfloat16", 3, 1),
    "two GPUs float32 ZeRO-0": ("cuda", "float32", 0, 2),
    "two GPUs float32 ZeRO-2": ("cuda", "float32", 2, 2),
    "two GPUs float32 ZeRO-3": ("cuda", "float32", 3, 2),
    "two GPUs bfloat16 ZeRO-3": ("cuda", "bfloat16", 3, 2),
}


def make_trainer(model: Path, config: RunConfig) -> Trainer:
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    ranks = join_ranks()
    policy = load_policy(str(model), config)
    if config.zero_stage < 3:
        policy = policy.to(ranks.device)
    return Trainer(config, ranks, policy, PromptEncoder(model, policy, config), None)


def one_step(name: str, out: Path) -> None:
    """The step of the small model on the demo's groups: what it reports, and where it leaves the parameters."""
    _, dtype, stage, num_ranks = WAYS[name]
    with tempfile.TemporaryDirectory() as folder:
        groups = make_groups(Path(folder), 8)
        one_batch = {**DEMO, "num_updates_per_batch": 1, "k3_weight": 0.0, "per_device_batch_size": 16}
        config = make_config(Path(folder), **one_batch, dtype=dtype, zero_stage=stage, learner_processes=num_ranks)
        trainer = make_trainer(MODEL, config)
        report = trainer.step(StepPlan(0, tuple(groups), version=PolicyVersion(1, 0)))
        trainer.state.save(out / "engine")
    if os.environ.get("RANK", "0") == "0":
        (out / "report.json").write_text(json.dumps(report))


def agree() -> None:
    """Every way starts at the same weights and trains on the same groups."""
    with tempfile.TemporaryDirectory() as folder:
        reports, gradients = {}, {}
        for name, (where, _, _, num_ranks) in WAYS.items():
            if num_ranks > max(1, torch.cuda.device_count()):
                continue
            out = Path(folder, name.replace(" ", "_"))
            out.mkdir()
            start_ranks(name, num_ranks, out, on_cpu=where == "cpu")
            reports[name] = json.loads((out / "report.json").read_text())
            gradients[name] = first_moments(out / "engine")
        base, gradient = reports["cpu float32"], gradients["cpu float32"]
        for name, report in reports.items():
            off = sum(float((gradients[name][key] - whole).norm()) ** 2 for key, whole in gradient.items())
            size = sum(float(whole.norm()) ** 2 for whole in gradient.values())
            apart = {key: abs(report[key] / base[key] - 1) for key in ("entropy", "mismatch_kl", "grad_norm")}
            print(
                f"{name:<22} gradient off by {(off / size) ** 0.5:.1e} of its norm; "
                + ", ".join(f"{key} {report[key]:.6f} (off by {value:.1e})" for key, value in apart.items()),
                flush=True,
            )


def start_ranks(name: str, num_ranks: int, out: Path, on_cpu: bool) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if on_cpu else {}
    common = {**os.environ, **hidden, "WORLD_SIZE": str(num_ranks)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, __file__, "one", "--way", name, "--out", str(out)]
    ranks = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(num_ranks)
    ]
    try:
        assert [rank.wait(150) for rank in ranks] == [0] * num_ranks, f"{name} failed"
    finally:
        for rank in ranks:
            rank.kill()


def first_moments(folder: Path) -> dict[str, torch.Tensor]:
    """AdamW's means after one step: the clipped gradient times 1 - beta1, in float32 whatever the way."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("state-*.safetensors"):
        found |= {name: tensor for name, tensor in load_file(file).items() if name.startswith("exp_avg/")}
    assert found, f"no first moments in {folder}"
    return found


def memory() -> None:
    """Peak of forward and backward beyond inputs, head and its gradient; the bound is a growth of 5 %."""
    head = torch.randn(151936, 2048, device="cuda", dtype=torch.bfloat16).requires_grad_()
    none = torch.zeros(0, dtype=torch.long, device="cuda")
    first = 0
    for num_tokens in (1024, 2048, 4096, 8192):
        hidden = torch.randn(num_tokens, 2048, device="cuda", dtype=torch.bfloat16).requires_grad_()
        targets = torch.randint(0, 151936, (num_tokens,), device="cuda")
        temperatures = torch.ones(num_tokens, device="cuda")
        head.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, began = torch.cuda.memory_allocated(), time.perf_counter()
        stats = token_stats(hidden, head, targets, temperatures, none)
        (stats.logprobs.sum() + 0.1 * stats.entropy.sum()).backward()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        first = first or peak
        whole = num_tokens * 151936 * 4
        print(
            f"{num_tokens:>5} tokens: {peak / 1e9:.3f} GB ({peak / first:.3f} of 1,024 tokens'; one float32 tensor of "
            f"all logits is {whole / 1e9:.2f} GB), {1e3 * (time.perf_counter() - began):.0f} ms",
            flush=True,
        )


class Way(NamedTuple):
    """How the 3B shape's step is taken: groups a forward, what is recomputed, and whose kernels."""

    per_forward: int
    checkpointing: bool | str
    fused_kernels: str = "auto"
    padded: bool = False  # a row for each completion and transformers' own attention: as if no family were known
    batched: bool = False  # of padded rows: our attention in the vision tower, all windows of a length at once

    def __str__(self) -> str:
        whose = "attention by length of window" if self.batched else "transformers' attention"
        rows = f"{self.per_forward} groups a forward" if not self.padded else f"padded rows, {whose}"
        return f"{rows}, checkpointing {self.checkpointing}, fused kernels {self.fused_kernels}"


SHAPE_WAYS = (
    Way(1, True, "none", padded=True),
    Way(1, True, "none"),
    Way(1, False, "none"),
    Way(1, False),
    Way(2, False),
    Way(4, "vision"),
    Way(8, "vision"),
    Way(8, True),
    Way(1, True, "none", padded=True, batched=True),
    Way(4, False),
    Way(4, "vision", "none"),
)


def shape(name: str, num_groups: int, repeats: int, ways: list[int]) -> None:
    """A process for each way: DeepSpeed's engine does not let go of its tensors."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        make_shape(model, name)
        torch.cuda.empty_cache()
        for way in ways or range(len(SHAPE_WAYS)):
            command = [sys.executable, __file__, "shape-one", "--out", folder, "--ways", str(way)]
            few = SHAPE_WAYS[way].padded  # it takes long enough
            command += ["--groups", str(2 if few else num_groups), "--repeats", str(3 if few else repeats)]
            if subprocess.run(command, timeout=200).returncode:
                print(f"{SHAPE_WAYS[way]}: failed; a card with less memory cannot take all of them", flush=True)


def shape_one(folder: Path, num_groups: int, repeats: int, way: Way) -> None:
    if way.padded:
        FAMILIES.clear()
        if not way.batched:
            learner_model.batch_vision_attention = lambda _: None
    measure(*shape_trainer(folder, folder / "model", num_groups, way), repeats, str(way))


def shape_trainer(folder: Path, model: Path, num_groups: int, way: Way) -> tuple[Trainer, list[Group]]:
    """A learner of that model, and what it trains on: groups of a large image and completions of 64 tokens."""
    config = make_config(
        folder,
        num_generations=NUM_GENERATIONS,
        max_completion_length=64,
        model=str(model),
        dtype="bfloat16",
        zero_stage=1,
        gradient_checkpointing=way.checkpointing,
        fused_kernels=way.fused_kernels,
        per_device_batch_size=NUM_GENERATIONS * way.per_forward,
        learner_threads=4,
    )
    groups = make_groups(folder, num_groups, side=SIDE, length=lambda _: 64, model=model)
    return make_trainer(model, config), groups


def take(trainer: Trainer, plan: StepPlan, step: int) -> dict[str, float]:
    """One step, as a run takes it: the images of the next are encoded while it ends."""
    trainer.while_computing = lambda _: trainer.expect(replace(plan, step=step + 1))
    report = trainer.step(replace(plan, step=step))
    torch.cuda.synchronize()
    return report


def measure(trainer: Trainer, groups: list[Group], repeats: int, title: str) -> None:
    plan = StepPlan(0, tuple(groups), version=PolicyVersion(1, 0))
    for step in range(2):
        take(trainer, plan, step)
    torch.cuda.reset_peak_memory_stats()
    held, seconds, phases, report = torch.cuda.memory_allocated(), [], [], {}
    for step in range(2, 2 + repeats):
        began = time.perf_counter()
        report = take(trainer, plan, step)
        seconds.append((time.perf_counter() - began) / len(groups))
        phases.append({name: round(value, 2) for name, value in trainer.phases.items()})
    print(
        f"{len(groups)} groups, {title}: {spread(seconds)} a group; peak {torch.cuda.max_memory_allocated() / 1e9:.1f} "
        f"GB, of it {held / 1e9:.1f} held between steps; grad norm {report['grad_norm']:.3f}; {phases[-1]}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agree", "memory", "shape", "one", "shape-one"])
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, default=DEFAULT_SHAPE, help="shape: whose")
    parser.add_argument("--groups", type=int, default=16, help="shape: in a step")
    parser.add_argument("--repeats", type=int, default=5, help="shape: steps")
    ways = "; ".join(f"{index}: {way}" for index, way in enumerate(SHAPE_WAYS))
    parser.add_argument("--ways", type=int, nargs="+", default=[], help=f"shape: of these alone. {ways}")
    options = parser.parse_args()
    if options.what in ("agree", "memory", "shape"):
        print_versions(**vars(options))
    if options.what == "one":
        one_step(options.way, options.out)
    elif options.what == "shape-one":
        shape_one(options.out, options.groups, options.repeats, SHAPE_WAYS[options.ways[0]])
    elif options.what == "shape":
        shape(options.shape, options.groups, options.repeats, options.ways)
    else:
        {"agree": agree, "memory": memory}[options.what]()


if __name__ == "__main__":
    main()
