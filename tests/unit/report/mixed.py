"""Writes the folder of a run of four tasks that never was: boxes in two spaces, tokens with gaps, evaluations by task.

The images are scikit-learn-like only from afar: digits drawn with Pillow, each in a box that is known.
"""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw, ImageFont

from tests.unit.report.synthetic import Json, metric, write_lines

WIDTH, HEIGHT = 224, 168  # of every image
SPACES = {
    "grounding": {"response_space": "normalized_1000"},
    "detection": {"response_space": "absolute", "resized_size": [112, 84]},
}
HEADLINES = {
    "counting": "accuracy",
    "ocr": "one_minus_edit_distance",
    "grounding": "mean_iou",
    "detection": "f1_50",
}
Placed = tuple[str, list[float]]  # a digit and its box, in pixels


def write_mixed_run(folder: Path, *, name: str = "mixed", num_steps: int = 40, seed: int = 0, **options: Any) -> Path:
    """A run in `folder`/NAME, its images in `folder`/data. `options` go into its config.yaml."""
    chance = random.Random(seed)
    run = folder / name
    run.mkdir(parents=True)
    scenes = write_scenes(folder / "data")
    config = {"run": name, "model": "examples/tiny_vlm", "task": "counting", "seed": seed, "num_steps": num_steps}
    config |= {
        "train_file": str(folder / "data" / "train.json"),
        "rewards": ["task", "format=0.2"],
        "learning_rate": 1e-4,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config | options))
    metrics = [metric(step, num_steps, chance) for step in range(1, num_steps + 1)]
    for record in metrics:
        progress = 1 - math.exp(-3 * record["step"] / num_steps)
        rise = {"counting": 0.35, "grounding": 0.5, "ocr": 0.2, "detection": 0.4}
        record["reward_by_task"] = {task: 0.35 + gain * progress + chance.gauss(0, 0.02) for task, gain in rise.items()}
        record |= {"kl_k1": record["kl_k3"] * 0.9, "kl_kimifull": record["kl_k3"] * 1.05, "policy_loss": record["loss"]}
        record |= {"lag_p90": 1}
    write_lines(run / "metrics.jsonl", metrics)
    write_lines(run / "evaluations.jsonl", _evaluations(num_steps, chance))
    lines = [line for step in range(1, num_steps + 1) for line in _completions(step, num_steps, scenes, chance)]
    write_lines(run / "completions.jsonl", lines)
    ledger = {"fed": 164, "trained": 160, "dropped": {"stale": 4}, "dead": {}, "pending": 0, "balanced": True}
    (run / "ledger.json").write_text(json.dumps(ledger))
    (run / "parity.json").write_text(json.dumps([{"step": 0, "max_abs_dlogp": 3.1e-6, "mean_abs_dlogp": 4.2e-7}]))
    return run


def write_scenes(data: Path) -> list[list[Placed]]:
    """Images `scene0.png` to `scene5.png` of a few digits each; what is on them, and where."""
    data.mkdir(exist_ok=True)
    chance = random.Random(7)
    scenes = []
    for place in range(6):
        image = Image.new("RGB", (WIDTH, HEIGHT), (20, 24, 33))
        draw = ImageDraw.Draw(image)
        scene: list[Placed] = []
        for cell in chance.sample(range(6), chance.randint(3, 5)):
            digit, size = str(chance.randint(0, 9)), chance.randint(30, 54)
            at = (10 + cell % 3 * 72 + chance.randint(0, 12), 6 + cell // 3 * 80 + chance.randint(0, 14))
            font = ImageFont.load_default(size)
            draw.text(at, digit, fill=(236, 238, 242), font=font)
            scene.append((digit, [float(edge) for edge in draw.textbbox(at, digit, font=font)]))
        image.save(data / f"scene{place}.png")
        scenes.append(scene)
    return scenes


def _evaluations(num_steps: int, chance: random.Random) -> list[Json]:
    lines = []
    for step in (0, num_steps // 2, num_steps):
        when = "before" if step == 0 else "after" if step == num_steps else "step"
        for task, headline in HEADLINES.items():
            for mode in ("greedy", "sampled"):
                value = 0.45 + 0.3 * step / num_steps + chance.gauss(0, 0.02) - 0.08 * (mode == "sampled")
                metrics = {headline: {"value": value, "low": value - 0.04, "high": value + 0.04}}
                line = {"name": when, "step": step, "mode": mode, "task": task, "n": 160, "temperature": 1.0}
                line |= {"seconds": 4.0, "headline": headline, "metrics": metrics, "policy_version": f"1.{step}"}
                lines.append(line | ({"accuracy": value} if task == "counting" else {}))
    return lines


def _completions(step: int, num_steps: int, scenes: list[list[Placed]], chance: random.Random) -> list[Json]:
    lines = []
    for turn, task in enumerate(HEADLINES):
        place = chance.randrange(len(scenes))
        for sample in range(4):
            slip = 12 * (1.1 - step / num_steps) * (sample + 0.2) / 3
            answer = _answer(task, scenes[place], slip, chance)
            lines.append(_line(step, f"{step * 4 + turn}/0", task, place, answer, chance))
    return lines


def _answer(task: str, scene: list[Placed], slip: float, chance: random.Random) -> Json:
    """What is asked, the truth, what was said, what it was read as and what it is worth."""

    def moved(box: list[float]) -> list[float]:
        return [edge + chance.uniform(-slip, slip) for edge in box]

    if task == "grounding":
        digit, box = scene[0]
        said = [round(edge * 1000 / (WIDTH, HEIGHT)[axis % 2]) for axis, edge in enumerate(moved(box))]
        parsed: Any = {"bbox_2d": said}
        asked, truth, text = f"Where is the {digit}?", box, json.dumps(said)
    elif task == "detection":
        found = [
            ([round(edge / 2, 1) for edge in moved(box)], digit) for digit, box in scene[: len(scene) - (slip > 6)]
        ]
        parsed = [{"bbox_2d": box, "label": digit} for box, digit in found]
        truth = [{"bbox_2d": box, "label": digit} for digit, box in scene]
        asked, text = "Find every digit and its box.", json.dumps(parsed)
    elif task == "ocr":
        truth = "".join(digit for digit, _ in scene)
        parsed = text = truth if slip < 6 else truth[:-1]
        asked = "Which digits do you see?"
    else:
        truth = len(scene)
        parsed = truth + (slip > 8)
        asked, text = "How many digits are there?", str(parsed)
    return {"problem": asked, "solution": truth, "text": text, "parsed": parsed, "worth": max(0.0, 1 - slip / 14)}


def _line(step: int, prompt_id: str, task: str, place: int, answer: Json, chance: random.Random) -> Json:
    text = f"<answer>{answer['text']}</answer>"
    tokens = [*re.findall(r"</?\w+>|\w+|\s+|[^\w\s]", text), "<|im_end|>"]
    gaps = [round(chance.choice([1e-4, 0.02, 0.05, 0.2, 0.5]) * chance.gauss(0, 1), 4) for _ in tokens]
    gaps[0], gaps[-1] = 1.25, -1.5
    failed = step % 8 == 0 and task == "ocr"
    worth = None if failed else round(answer["worth"], 3)
    return {
        "step": step, "prompt_id": prompt_id, "task": task, "problem": answer["problem"],
        "prompt": f"<|im_start|>user\n<|image_pad|>{answer['problem']}<|im_end|>\n<|im_start|>assistant\n",
        "images": [f"scene{place}.png"], "image_sizes": [[WIDTH, HEIGHT]], "solution": answer["solution"],
        "completion": text, "tokens": tokens, "gaps": gaps, "parsed": {task: answer["parsed"]},
        "coordinates": {task: SPACES[task]} if task in SPACES else {},
        "reward": None if worth is None else round(worth + 0.2, 3),
        "components": {"format": 1.0} if worth is None else {task: worth, "format": 1.0},
        "outcome": "timeout" if failed else "ok", "detail": "took longer than 5 s" if failed else "",
        "policy_version": f"1.{step - 1}", "policy_lag": step % 2, "finish_reason": "stop",
        "advantage": None if worth is None else worth - 0.5,
    }  # fmt: skip


__all__ = ["HEIGHT", "WIDTH", "write_mixed_run", "write_scenes"]
