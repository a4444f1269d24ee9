"""One run over counting, OCR, grounding and detection with every part real: each sample is treated by its own task.

One data file with a `task` in each row, drawn by the generators of the demonstrations; `mmr1 up` takes two steps. What
is then looked at is what the run has written, and a replay of its second step without the kimikl term.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmr1.data_cli import main as data_main
from mmr1_reward_server.api import Item
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import scored_item
from tests.conftest import REPOSITORY, free_port, free_ports

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

WEIGHTS = {"counting": 3, "ocr": 2, "grounding": 2, "detection": 1}
PROMPTS_PER_STEP = sum(WEIGHTS.values())  # a cycle of the data order
NUM_ROWS = {"counting": 4, "ocr": 8, "grounding": 6, "detection": 10}  # in another ratio than the weights
NUM_EVAL = {"counting": 4, "ocr": 3, "grounding": 2, "detection": 5}
HEADLINES = {"counting": "accuracy", "ocr": "one_minus_edit_distance", "grounding": "mean_iou", "detection": "f1_50"}
KIMIKL_TASK = "grounding"
NUM_STEPS, NUM_GENERATIONS, FORMAT_WEIGHT = 2, 4, 0.2


def draw(folder: Path) -> None:
    """train.json and eval.json of all tasks, each row with its task."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    for task in WEIGHTS:
        arguments = ["digits", "--task", task, "--out", str(folder / task)]
        assert data_main([*arguments, "--num-train", str(NUM_ROWS[task]), "--num-eval", str(NUM_EVAL[task])]) == 0
        for split, found in rows.items():
            for row in json.loads((folder / task / f"{split}.json").read_text()):
                found.append({**row, "task": task, "image": f"{task}/{row['image']}"})
    for split, found in rows.items():
        (folder / f"{split}.json").write_text(json.dumps(found))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("mixed")
    draw(folder / "digits")
    document = {
        "model": str(REPOSITORY / "examples/tiny_reader"),
        "train_file": str(folder / "digits/train.json"),
        "eval_file": str(folder / "digits/eval.json"),
        "run": "mixed",
        "run_dir": str(folder / "run"),
        "num_steps": NUM_STEPS,
        "num_generations": NUM_GENERATIONS,
        "per_device_batch_size": PROMPTS_PER_STEP * NUM_GENERATIONS,
        "max_off_policy_steps": 0,  # else a step takes the groups that are ready first, and these are of some tasks
        "task_weights": WEIGHTS,
        "rewards": ["task=1.0", f"format={FORMAT_WEIGHT}"],
        "kl": ["k3", "kimikl"],  # with k3 a group of equal rewards still has something to learn from, and stays
        "k3_weight": 0.01,
        "kimikl_weight": 10.0,
        "kimikl_task_id": KIMIKL_TASK,
        "learning_rate": 1e-3,
        "max_prompt_length": 64,
        "max_completion_length": 56,
        "eval_at_start": False,
        "dump_steps": [NUM_STEPS],
        "redis_port": free_port(),
        "reward_port": free_port(),
        "rollout_port": free_port(),
        "learner_metrics_port": free_ports(2),
        "learner_master_port": free_port(),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    with (folder / "up.log").open("w") as log:
        command = [sys.executable, "-m", "mmr1.cli", "up", str(folder / "run.yaml")]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment())
    try:
        code = process.wait(400)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    assert code == 0, (folder / "up.log").read_text()[-4000:]
    return folder / "run"


def test_every_step_takes_each_tasks_share(run: Path) -> None:
    completions = lines(run / "completions.jsonl")
    for step in range(1, NUM_STEPS + 1):
        taken = Counter(line["task"] for line in completions if line["step"] == step)
        assert taken == {task: weight * NUM_GENERATIONS for task, weight in WEIGHTS.items()}
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["balanced"] and ledger["trained"] == NUM_STEPS * PROMPTS_PER_STEP


def test_each_sample_is_rewarded_by_its_own_task(run: Path) -> None:
    """The rewards are what the tasks' scorers say when they are asked again, each of its own samples."""
    registry = builtin_tasks()
    for line in lines(run / "completions.jsonl"):
        own = line["task"]
        assert line["components"].keys() == {own, "format"}
        item = Item(
            id="again",
            task=own,
            response=line["completion"],
            solution=line["solution"],
            params=line["coordinates"].get(own, {}),
            image_size=line["image_sizes"][0],
        )
        again = scored_item(registry, item, max_response_chars=10_000).reward
        assert line["components"][own] == pytest.approx(again, abs=1e-6), line
        total = line["components"][own] + FORMAT_WEIGHT * line["components"]["format"]
        assert line["reward"] == pytest.approx(total, abs=1e-6)


def test_a_steps_line_has_each_tasks_mean_reward(run: Path) -> None:
    rewards: dict[tuple[int, str], list[float]] = defaultdict(list)
    for line in lines(run / "completions.jsonl"):
        rewards[line["step"], line["task"]].append(line["reward"])
    assert len({round(statistics.fmean(some), 3) for some in rewards.values()}) > len(WEIGHTS), "they can be told apart"
    for line in lines(run / "metrics.jsonl"):
        expected = {task: statistics.fmean(rewards[line["step"], task]) for task in WEIGHTS}
        assert line["reward_by_task"] == pytest.approx(expected)


def test_the_kimikl_term_is_of_the_one_task(run: Path) -> None:
    """Without the term the losses of that task's groups are others, and those of no other task."""
    (dump,) = (run / "dumps").iterdir()
    command = [sys.executable, "-m", "mmr1_learner.replay", str(dump), "--kimikl_weight", "0"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.stdout.splitlines() if "│" in line]
    found = Counter((row[1], "different" in row) for row in rows)
    assert found == {(task, task == KIMIKL_TASK): weight for task, weight in WEIGHTS.items()}, said.stdout + said.stderr


def test_the_last_evaluation_has_every_task_by_itself(run: Path) -> None:
    found = lines(run / "evaluations.jsonl")
    assert {(line["name"], line["step"]) for line in found} == {("after", NUM_STEPS)}
    for mode in ("greedy", "sampled"):
        of_mode = [line for line in found if line["mode"] == mode]
        assert {line["task"]: (line["n"], line["headline"]) for line in of_mode} == {
            task: (NUM_EVAL[task], headline) for task, headline in HEADLINES.items()
        }
        assert all(0 <= line["metrics"][line["headline"]]["value"] <= 1 for line in of_mode)
