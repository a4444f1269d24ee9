"""Writes the folder of a run that never was: every file a learner leaves, with figures from a seeded generator."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

Json = dict[str, Any]


def write_run(folder: Path, *, num_steps: int = 60, seed: int = 0, groups_per_step: int = 4) -> Path:
    """A complete run of `num_steps` steps in `folder`/run, its images in `folder`/data."""
    chance = random.Random(seed)
    run, data = folder / "run", folder / "data"
    run.mkdir(parents=True)
    _images(data, chance)
    config = {"run": "demo", "model": "examples/tiny_vlm", "task": "counting", "seed": 0, "num_steps": num_steps}
    config |= {"train_file": str(data / "train.json"), "num_generations": 8, "rewards": ["counting", "format=0.2"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_lines(run / "metrics.jsonl", [metric(step, num_steps, chance) for step in range(1, num_steps + 1)])
    write_lines(run / "evaluations.jsonl", evaluations())
    steps = range(1, num_steps + 1)
    write_lines(run / "completions.jsonl", [c for step in steps for c in completions(step, chance, groups_per_step)])
    ledger = {"fed": 1924, "trained": 1916, "dropped": {"stale": 6, "sibling_masked": 1}, "dead": {}, "pending": 1}
    (run / "ledger.json").write_text(json.dumps(ledger | {"balanced": True}))
    parity = {"step": 0, "incarnation": 1, "max_abs_dlogp": 3.1e-6, "mean_abs_dlogp": 4.2e-7, "num_tokens": 384}
    (run / "parity.json").write_text(json.dumps([parity | {"bound": 1e-3}]))
    return run


def write_lines(path: Path, records: list[Json]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def metric(step: int, num_steps: int, chance: random.Random) -> Json:
    progress = 1 - math.exp(-3 * step / num_steps)
    reward = 0.6 + 0.3 * progress + chance.gauss(0, 0.03)
    return {
        "step": step, "num_steps": num_steps, "time": 1.8e9 + 5.0 * step, "seconds": 5.0, "policy_version": f"1.{step}",
        "reward_mean": reward, "reward_std": 0.48 - 0.12 * progress,
        "components": {"counting": reward - 0.19, "format": 0.95 + 0.05 * progress}, "loss": chance.gauss(0, 0.01),
        "kl_k3": 0.08 * progress + abs(chance.gauss(0, 0.003)), "entropy": 1.1 - 0.5 * progress + chance.gauss(0, 0.02),
        "temperature": 1.0, "lag_mean": 0.9 + chance.gauss(0, 0.05) * (step > 1), "lag_max": 1 if step > 1 else 0,
        "tokens_per_second": 780 + chance.gauss(0, 45), "completion_length_mean": 4.0 + 0.1 * chance.random(),
        "clip_fraction": 0.0, "tis_truncated_fraction": 0.002 * chance.random(),
        "off_policy_kl": 1e-4 * chance.random(), "mismatch_kl": None if step % 2 else 1e-9,
        "grad_norm": 0.8 + 0.2 * chance.random(), "learning_rate": 1e-4, "num_groups": 32, "num_rollouts": 256,
        "outcomes": {"ok": 250 - int(6 * (1 - progress)), "invalid_output": 6 + int(6 * (1 - progress))},
        "dropped": {"stale": 1} if step % 13 == 0 else {},
        "phases": {"wait": 0.6 + chance.random() * 0.2, "forward": 1.3, "backward": 2.1, "optimizer": 0.2,
                   "weight_update": 0.5 + 0.1 * chance.random()},
        "update_phases": {"closing": 0.02, "weights": 0.1 + 0.05 * chance.random(), "sampling": 0.2, "comparing": 0.1,
                          "opening": 0.01},
        "probe_max_abs_dlogp": 2e-6 + 2e-6 * chance.random(),
    }  # fmt: skip


def evaluations() -> list[Json]:
    rows = [("before", 0, "greedy", 0.525), ("before", 0, "sampled", 0.405)]
    rows += [("after", 60, "greedy", 0.772), ("after", 60, "sampled", 0.667)]
    return [
        {"name": name, "step": step, "mode": mode, "n": 640, "accuracy": accuracy, "temperature": 1.0, "seconds": 9.0,
         "task": "counting"}
        for name, step, mode, accuracy in rows
    ]  # fmt: skip


def completions(step: int, chance: random.Random, num_groups: int) -> list[Json]:
    records = []
    for group in range(num_groups):
        truth = chance.randint(1, 7)
        image = f"images/{chance.randint(0, 11):05d}.png"
        for sample in range(8):
            said = max(1, truth + chance.choice([0, 0, 0, 1, -1]))
            broken = step % 9 == 0 and group == 0 and sample == 0
            reward = 0.0 if broken else float(said == truth) + 0.2
            records.append(completion(step, f"{step * num_groups + group}/0", image, truth, said, broken, reward))
    return records


def completion(step: int, prompt_id: str, image: str, truth: int, said: int, broken: bool, reward: float) -> Json:
    return {
        "step": step, "prompt_id": prompt_id, "task": "counting", "problem": "How many digits are there?",
        "prompt": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many digits are there?<|im_end|>\n"
                  "<|im_start|>assistant\n",
        "images": [image], "solution": truth,
        "completion": "<answer>3<answer>3" if broken else f"<answer>{said}</answer>",
        "reward": reward, "components": {} if broken else {"counting": float(said == truth), "format": 1.0},
        "outcome": "invalid_output" if broken else "ok", "detail": "no number in the answer" if broken else "",
        "policy_version": f"1.{max(0, step - 1)}", "policy_lag": int(step > 1),
        "finish_reason": "length" if broken else "stop", "advantage": reward - 0.8,
    }  # fmt: skip


def _images(data: Path, chance: random.Random) -> None:
    (data / "images").mkdir(parents=True)
    for number in range(12):
        image = Image.new("RGB", (112, 112), "black")
        draw = ImageDraw.Draw(image)
        for _ in range(chance.randint(1, 7)):
            x, y, size = chance.randint(4, 84), chance.randint(4, 84), chance.randint(12, 24)
            draw.ellipse((x, y, x + size * 0.6, y + size), outline="white", width=3)
        image.save(data / "images" / f"{number:05d}.png")
