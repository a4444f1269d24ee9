"""An evaluation of every task at once by a real judge, the lines it leaves, and runs that end in the middle of one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmr1.records import FinishReason, Group, PolicyVersion, Problem, Prompt, Rollout, VersionSpan
from mmr1_learner import evaluate
from mmr1_learner.errors import StopRequestedError
from mmr1_learner.evaluate import Evaluation, Evaluator, evaluation_records, tracked
from mmr1_learner.prompts import PromptFactory
from mmr1_reward_server.app import create_app
from mmr1_reward_server.client import RewardClient
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings
from tests.models import small_config
from tests.unit.learner.run_of_a_test import Run
from tests.unit.reward_server.reward_in_process import InProcessScoring

BOXES = [{"bbox_2d": [0, 0, 10, 10], "label": "7"}, {"bbox_2d": [20, 0, 30, 10], "label": "4"}]
ASKED = [  # task, solution, what is answered greedily, and what when sampled
    ("counting", 3, "<answer>3</answer>", "<answer>3</answer>"),
    ("counting", 4, "<answer>6</answer>", "many"),
    ("grounding", [0, 0, 10, 10], "<answer>[0, 0, 10, 5]</answer>", "<answer>[0, 0,"),
    ("ocr", "4 7 1 1", "<answer>4 7 1 1</answer>", "<answer>4 7 1 7</answer>"),
    ("detection", BOXES, f"<answer>{json.dumps(BOXES)}</answer>", f"<answer>{json.dumps(BOXES[:1])}</answer>"),
]
PROBLEMS = [Problem(index, "What?", solution, (), task) for index, (task, solution, _, _) in enumerate(ASKED)]


class Client:
    """A rollout server that says what a test wants."""

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def generate(self, prompt: Prompt, *, timeout: float) -> Group:
        self.asked.append(prompt)
        text = ASKED[prompt.id.position][3 if prompt.sampling.temperature else 2]
        span = VersionSpan(PolicyVersion(1, 2), 0, 1)
        rollout = Rollout((7,), (-0.5,), (span,), text, FinishReason.STOP if text[-1] == ">" else FinishReason.LENGTH)
        return Group(prompt, (1, 2), (rollout,), "rollout-0")


@pytest.fixture
def evaluations(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[Evaluation]:
    tasks = Registry(builtin_tasks())

    def in_process(*_: Any) -> RewardClient:
        app = create_app(Settings(), tasks, InProcessScoring(tasks))
        return RewardClient("http://reward", 30.0, httpx.ASGITransport(app))

    monkeypatch.setattr(evaluate, "reward_client", in_process)
    config = small_config(small_model, eval_file="eval.json", seed=3)
    evaluator = Evaluator(config, PromptFactory(config, PROBLEMS, ()), PROBLEMS)
    return evaluator.run([Client()], 0.8, lambda: None)  # type: ignore[list-item]


def test_every_task_has_its_lines(evaluations: list[Evaluation]) -> None:
    records = evaluation_records("before", 0, "1.0", evaluations)
    keys = ["name", "step", "mode", "task", "num_problems", "num_samples", "headline", "metrics"]
    keys += ["n", "accuracy", "temperature", "seconds", "policy_version"]
    assert all(list(record) == keys for record in records)
    shown = {
        (record["mode"], record["task"]): (
            record["n"],
            record["accuracy"],
            record["metrics"][record["headline"]]["value"],
        )
        for record in records
    }
    assert shown == {
        ("greedy", "counting"): (2, 0.5, 0.5),
        ("greedy", "grounding"): (1, None, 0.5),
        ("greedy", "ocr"): (1, 1.0, 1.0),
        ("greedy", "detection"): (1, None, 1.0),
        ("sampled", "counting"): (2, 0.5, 0.5),
        ("sampled", "grounding"): (1, None, 0.0),
        ("sampled", "ocr"): (1, 0.0, pytest.approx(6 / 7)),
        ("sampled", "detection"): (1, None, pytest.approx(2 / 3)),
    }
    by_key = {(record["mode"], record["task"]): record["metrics"] for record in records}
    assert by_key["greedy", "counting"]["mae"]["value"] == 1.0
    assert by_key["sampled", "counting"]["mae"]["value"] == 2.0, "no number is as far off as 0"
    assert (
        by_key["sampled", "counting"]["invalid"]["value"] == by_key["sampled", "counting"]["truncated"]["value"] == 0.5
    )
    assert by_key["sampled", "detection"]["ap"]["value"] == pytest.approx(0.5)
    assert {record["temperature"] for record in records if record["mode"] == "greedy"} == {0.0}
    seconds = sum(record["seconds"] for record in records)
    assert seconds == pytest.approx(sum(result.seconds for result in evaluations)), "shared out, not counted twice"


def test_trackers_get_every_metric_and_the_headline_of_a_single_task(evaluations: list[Evaluation]) -> None:
    found = tracked(evaluations)["held_out"]
    assert list(found) == ["counting", "grounding", "ocr", "detection"]
    assert found["counting"]["sampled"]["mae"] == 2.0
    of_one = [replace(result, tasks=result.tasks[:1]) for result in evaluations]
    assert {mode: tracked(of_one)["held_out"][mode] for mode in ("greedy", "sampled")} == {
        "greedy": 0.5,
        "sampled": 0.5,
    }


def test_a_prompt_is_asked_as_the_run_asks_and_scored_by_its_own_task(small_model: Path) -> None:
    config = small_config(small_model, rewards=["format"], temperature=0.7, stop=["\n"])
    prompts = PromptFactory(config, PROBLEMS, (1,))
    greedy, sampled = (prompts.evaluation(2, PROBLEMS[2], temperature) for temperature in (0.0, 0.7))
    assert (greedy.sampling.temperature, greedy.sampling.seed) == (0.0, None)
    assert sampled.sampling.seed is not None
    assert sampled.sampling == prompts.sampling(0.7, sampled.sampling.seed)
    assert [(spec.task, spec.params) for spec in greedy.rewards] == [("grounding", {"score": "iou"})]
    assert greedy.solution == [0, 0, 10, 10]


class Played:
    """Stands where the Evaluator does; may be told to stop in the middle, as by a signal."""

    def __init__(self, found: list[Evaluation], *, stops: bool = False) -> None:
        self.found, self.stops = found, stops

    def run(self, *_: Any) -> list[Evaluation]:
        if self.stops:
            raise StopRequestedError
        return self.found


def learner_of(run: Run, evaluator: Played) -> Any:
    learner = run.learner()
    learner.leader._sender.clients = lambda: []
    learner.leader._evaluator = evaluator
    learner.leader._evaluate_if_due(learner.step)
    return learner


def steps_evaluated(run: Run) -> list[tuple[str, int]]:
    path = run.config.run_dir / "evaluations.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["name"], line["step"]) for line in lines if line["mode"] == "greedy" and line["task"] == "ocr"]


def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(
    redis_url: str, tmp_path: Path, evaluations: list[Evaluation]
) -> None:
    run = Run(redis_url, tmp_path, eval_every=1)
    stopped = learner_of(run, Played(evaluations, stops=True))
    stopped.collect()
    stopped.save()
    assert steps_evaluated(run) == []
    learner_of(run, Played(evaluations))
    assert steps_evaluated(run) == [("step", 1)]
    learner = learner_of(run, Played(evaluations))
    assert steps_evaluated(run) == [("step", 1)], "and once"
    learner.collect()
    assert steps_evaluated(run) == [("step", 1), ("step", 2)]
    learner.collect()
    assert steps_evaluated(run) == [("step", 1), ("step", 2)], "the last step's is the closing one"


def test_an_evaluation_of_a_step_that_is_taken_again_counts_once(
    redis_url: str, tmp_path: Path, evaluations: list[Evaluation]
) -> None:
    run = Run(redis_url, tmp_path, eval_every=1)
    killed = learner_of(run, Played(evaluations))
    killed.collect()
    killed.save()
    killed.collect()  # of this step, and of its evaluation, no checkpoint remains
    assert steps_evaluated(run) == [("step", 1), ("step", 2)]
    again = learner_of(run, Played(evaluations))
    assert steps_evaluated(run) == [("step", 1)]
    again.collect()
    assert steps_evaluated(run) == [("step", 1), ("step", 2)]
