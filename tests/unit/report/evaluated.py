"""Writes the folder of an evaluation that never was: what `mmr1 eval` leaves, its figures from our own measuring."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mmr1.evaluation import Answer, measure

WIDTH, HEIGHT = 120, 80


def write_evaluation(
    folder: Path, data: Path, *, seed: int = 0, skill: float = 0.6, problems: int = 40, samples: int = 1, **facts: Any
) -> Path:
    """Grounding (boxes as a grid of 1000) and counting, half each; `skill` is the share of right answers."""
    folder.mkdir(parents=True)
    (data / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(data / "images/a.png")
    chance = random.Random(seed)
    answers = [_answer(place, sample, chance, skill) for place in range(problems) for sample in range(samples)]
    asked = {"prompt": "<|im_start|>user: Where?<|im_end|>", "images": ["images/a.png"], "server": "r"}
    lines = [{**one.as_json(), **asked, "question": f"Question {one.problem}?"} for one in answers]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    identity = {"eval_file": f"{problems} problems (0123456789ab)", "model": f"files {seed}", "eval_mode": "greedy"}
    (folder / "evaluation.json").write_text(json.dumps(identity))
    about = {"model": "m/tiny", "eval_file": "eval.json", "mode": "greedy", "seed": 7, **facts}
    document = {**about, "tasks": [result.as_json() for result in measure(answers, seed=7)]}
    (folder / "results.json").write_text(json.dumps(document))
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": "mine", "train_file": str(data / "train.json")}))
    return folder


def _answer(place: int, sample: int, chance: random.Random, skill: float) -> Answer:
    right, silent = chance.random() < skill, chance.random() < 0.1
    same: dict[str, Any] = {"is_valid": not silent, "is_truncated": silent, "image_size": (WIDTH, HEIGHT)}
    if place % 2:
        parsed = None if silent else {"count": 3 if right else 4}
        reward = float(right and not silent)
        return Answer(place, sample, "counting", "<answer>3</answer>", 3, reward=reward, parsed=parsed, **same)
    box = [100, 250, 500, 750] if right else [600, 250, 900, 750]
    iou = float(right and not silent)
    same |= {"parsed": None if silent else {"bbox_2d": box}, "reward": iou, "components": {"iou": iou}}
    params = {"score": "iou", "response_space": "normalized_1000"}
    return Answer(place, sample, "grounding", f"<answer>{box}</answer>", [12, 20, 60, 60], params=params, **same)
