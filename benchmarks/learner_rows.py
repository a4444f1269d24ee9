"""Rows of the learner against each other: shared-prefix against padded, and several groups in one row against one.

Used by learner_step.py, which has the command line. Forward and backward of one batch, on one thread: FLOPs counted,
seconds taken turn by turn, values and gradients compared first. It measures no loss and no optimizer.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmr1.config import RunConfig
from mmr1_learner.loss.token_stats import token_stats
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.rows import Completion, Row, pack
from mmr1_learner.splitting import split

MODEL = Path(__file__).resolve().parent.parent / "examples" / "tiny_vlm"
NUM_GENERATIONS = 8
ORDINARY_TOKENS = range(20, 300)  # bytes and words: no special token


def make_config(folder: Path, **options: Any) -> RunConfig:
    paths = {"model": str(MODEL), "train_file": str(folder / "train.json"), "image_root": str(folder)}
    common = {"num_steps": 10**6, "rewards": ["counting"], "per_device_batch_size": NUM_GENERATIONS}
    return RunConfig(**{**paths, **common, **options})


def load() -> tuple[Policy, PromptEncoder]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder))
    policy = load_policy(str(MODEL), config)
    return policy, PromptEncoder(MODEL, policy, config)


def demo_length(rng: random.Random) -> int:
    """Tokens of a completion, as the demo's are: an answer of 4, now and then up to 12."""
    return 4 if rng.random() < 0.8 else rng.randint(1, 12)


def make_rows(encoder: PromptEncoder, num_prompt: int, num_completion: int, num_groups: int) -> list[Row]:
    """Groups whose prompts have `num_prompt` tokens, 64 of them an image's, and equally long completions."""
    rng = random.Random(0)
    rows = []
    for index in range(num_groups):
        pixels = np.random.default_rng(index).integers(0, 255, (224, 224, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        missing = num_prompt - len(encoder.encode(text, [image]).token_ids)
        prompt = encoder.encode(text + "7" * missing, [image])
        assert len(prompt.token_ids) == num_prompt
        tokens = [tuple(rng.choices(ORDINARY_TOKENS, k=num_completion)) for _ in range(NUM_GENERATIONS)]
        completions = tuple(Completion(ids, (0.0,) * num_completion, 1.0, 1.0) for ids in tokens)
        rows.append(Row(prompt, completions, 1.0))
    return rows


def shared(policy: Policy, encoder: PromptEncoder, rows: list[Row], max_row_tokens: int = 0) -> Tensor:
    return policy(pack(rows, encoder.image_token_id, encoder.pad_token_id, max_row_tokens)).logprobs


def padded(policy: Policy, encoder: PromptEncoder, rows: list[Row]) -> Tensor:
    """One row a completion, prompt and image in each, by the model's own forward; head and loss as in `shared`."""
    ids = torch.tensor([row.prompt.token_ids + one.token_ids for row in rows for one in row.completions])
    images = [row.prompt.images for row in rows for _ in row.completions]
    output = policy.hf.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.cat([image["pixel_values"] for image in images]),
        image_grid_thw=torch.cat([image["image_grid_thw"] for image in images]),
        mm_token_type_ids=(ids == encoder.image_token_id).long(),
        use_cache=False,
    )
    start = len(rows[0].prompt.token_ids)
    hidden = output.last_hidden_state[:, start - 1 : -1].flatten(0, 1)
    targets = ids[:, start:].flatten()
    none = torch.zeros(0, dtype=torch.long)
    return token_stats(hidden, policy.hf.lm_head.weight, targets, torch.ones(len(targets)), none).logprobs


def forward_and_backward(policy: Policy, score: Callable[[], Tensor]) -> Tensor:
    policy.zero_grad()
    logprobs = score()
    (logprobs * torch.linspace(-1, 1, logprobs.numel())).sum().backward()
    return logprobs.detach()


def count_flops(run: Callable[[], object]) -> int:
    """Of matrix products, those inside attention included: the fused kernel would hide them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def compare_rows(num_prompt: int, num_completion: int, num_groups: int, repeats: int) -> None:
    policy, encoder = load()
    rows = make_rows(encoder, num_prompt, num_completion, num_groups)
    hidden_size = policy.hf.config.get_text_config().hidden_size
    parts = [part for row in rows for part in split(row, hidden_size)]
    ways: dict[str, Callable[[], Tensor]] = {
        "padded": lambda: forward_and_backward(policy, lambda: padded(policy, encoder, rows)),
        "shared": lambda: forward_and_backward(policy, lambda: shared(policy, encoder, parts)),
    }
    values, grads = {}, {}
    for name, run in ways.items():
        values[name] = run()
        grads[name] = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    apart = float((grads["padded"] - grads["shared"]).norm() / grads["padded"].norm())
    largest = float((values["padded"] - values["shared"]).abs().max())
    assert largest < 1e-4 and apart < 1e-3, f"not the same step: {largest} {apart}"
    flops = {name: count_flops(run) for name, run in ways.items()}
    seconds = take_turns(ways, repeats)
    print(
        f"prompt {num_prompt}, completion {num_completion}, G = {NUM_GENERATIONS}, {num_groups} groups in "
        f"{len(parts)} shared rows: "
        f"log-probabilities within {largest:.1e}, gradients within {apart:.1e} of their norm"
    )
    for name in ways:
        print(f"{name:<8}{flops[name] / 1e9:>9.2f} GFLOP{spread(seconds[name])}")
    ratios = [a / b for a, b in zip(seconds["padded"], seconds["shared"], strict=True)]
    print(f"padded to shared: {flops['padded'] / flops['shared']:.2f} x FLOPs, time {spread(ratios, 'x')}")


def compare_packing(num_groups: int, repeats: int) -> None:
    """The demo's shapes: does it pay to let groups share rows?"""
    policy, encoder = load()
    rng = random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>" + "7" * 19
    prompt = encoder.encode(text, [Image.fromarray(pixels)])
    rows = []
    for _ in range(num_groups):
        tokens = [tuple(rng.choices(ORDINARY_TOKENS, k=demo_length(rng))) for _ in range(NUM_GENERATIONS)]
        rows.append(Row(prompt, tuple(Completion(ids, (0.0,) * len(ids), 1.0, 1.0) for ids in tokens), 1.0))
    longest = max(len(row.prompt.token_ids) + sum(len(one.token_ids) for one in row.completions) for row in rows)
    bounds = {"a row a group or more": longest, "up to two": 2 * longest, "up to four": 4 * longest}
    ways: dict[str, Callable[[], Tensor]] = {
        name: lambda bound=bound: forward_and_backward(policy, lambda: shared(policy, encoder, rows, bound))
        for name, bound in bounds.items()
    }
    for run in ways.values():
        run()
    seconds = take_turns(ways, repeats)
    first = next(iter(seconds.values()))
    for name, bound in bounds.items():
        num_rows, length = pack(rows, encoder.image_token_id, encoder.pad_token_id, bound).calls[0].input_ids.shape
        ratios = [a / b for a, b in zip(seconds[name], first, strict=True)]
        print(f"{name:<24}{num_rows:>4} x {length:<5}{spread(seconds[name])}, to the first {spread(ratios, 'x')}")


def take_turns(ways: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, run after run."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(values: list[float], unit: str = "s") -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):>9.3f} {unit} (quartiles {low:.3f} to {high:.3f}, {len(values)} runs)"
