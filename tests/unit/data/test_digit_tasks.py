"""The four kinds of problems: what is asked has the answer that is given, and the reward server reads it so."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmr1.data_cli import main
from mmr1.dataset import load_problems
from mmr1.digits.canvas import PATCH, Drawn
from mmr1.digits.scans import Scans, load_scans
from mmr1.digits.tasks import EVAL_STREAM, TASKS, TRAIN_STREAM
from mmr1.images import ImageStore
from mmr1.records import Problem
from mmr1.templates import Templates, render_answer
from mmr1_reward_server.api import Item
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import score_item

NEW = ("counting-of-one", "ocr", "grounding", "detection")


@pytest.fixture(scope="module")
def scans() -> Scans:
    return load_scans()


def drawn(name: str, scans: Scans, number: int = 200) -> list[Drawn]:
    task = TASKS[name]
    return [task.draw(np.random.default_rng([0, TRAIN_STREAM, i]), scans, task.canvas) for i in range(number)]


def ink(problem: Drawn, scans: Scans) -> None:
    """Every digit is drawn as it was scanned within its own square, and nothing outside of the squares."""
    covered = np.zeros(problem.pixels.shape, int)
    for placement in problem.placements:
        x1, y1, x2, y2 = placement.box
        assert x1 >= 0 and y1 >= 0 and x2 <= problem.pixels.shape[1] and y2 <= problem.pixels.shape[0]
        covered[y1:y2, x1:x2] += 1
        nearest = np.arange(placement.size) * 8 // placement.size
        scan = scans.images[scans.ids == placement.scan][0]
        assert (problem.pixels[y1:y2, x1:x2] == scan[nearest][:, nearest]).all()
    assert covered.max() == 1 and problem.pixels[covered == 0].max(initial=0) == 0


@pytest.mark.parametrize("name", NEW)
def test_pictures_show_what_is_said(name: str, scans: Scans) -> None:
    for problem in drawn(name, scans):
        ink(problem, scans)
        assert problem.problem in TASKS[name].questions
        assert all(side % PATCH == 0 for side in problem.pixels.shape)


def test_a_line_is_read_from_left_to_right(scans: Scans) -> None:
    problems = drawn("ocr", scans)
    for problem in problems:
        in_order = sorted(problem.placements, key=lambda placement: placement.x)
        assert problem.solution == "".join(str(placement.label) for placement in in_order)
    assert Counter(len(problem.solution) for problem in problems).keys() == {1, 2, 3, 4, 5}


def test_what_is_to_be_found_is_there_once(scans: Scans) -> None:
    asked = Counter()
    for problem in drawn("grounding", scans):
        (digit,) = [int(character) for character in problem.problem if character.isdigit()]
        (placement,) = [placement for placement in problem.placements if placement.label == digit]
        assert problem.solution == placement.box and 2 <= len(problem.placements) <= 4
        asked[digit] += 1
    assert len(asked) == 10


def test_all_digits_are_to_be_detected(scans: Scans) -> None:
    for problem in drawn("detection", scans):
        boxes = {(tuple(one["bbox_2d"]), one["label"]) for one in problem.solution}
        assert boxes == {(tuple(placement.box), str(placement.label)) for placement in problem.placements}
        assert len(problem.solution) == len(problem.placements) <= 3


def test_one_digit_is_counted_among_others(scans: Scans) -> None:
    counts = Counter()
    for problem in drawn("counting-of-one", scans):
        (digit,) = [int(character) for character in problem.problem if character.isdigit()]
        assert problem.solution == sum(placement.label == digit for placement in problem.placements)
        counts[problem.solution] += 1
    assert set(counts) >= {0, 1, 2, 3, 4, 5} and max(counts.values()) < 100


@pytest.mark.parametrize("name", NEW)
def test_the_reward_server_gives_full_marks_for_the_solution_and_none_for_another(name: str, scans: Scans) -> None:
    registry = builtin_tasks()
    first, *others = drawn(name, scans, 20)

    def reward(answer: Drawn) -> float:
        said = render_answer(Problem(0, "", answer.solution, (), TASKS[name].task), Templates())
        item = Item(id="1", task=TASKS[name].task, response=said, solution=first.solution)
        result = score_item(registry, item, max_response_chars=1000)
        assert result.reward is not None, result.detail
        return result.reward

    assert reward(first) == 1.0
    assert min(map(reward, others)) < 0.5


@pytest.mark.parametrize("name", NEW)
def test_files(name: str, scans: Scans, tmp_path: Path) -> None:
    command = ["digits", "--task", name, "--num-train", "6", "--num-eval", "5", "--seed", "2"]
    for folder in ("a", "b"):
        assert main([*command, "--out", str(tmp_path / folder)]) == 0
    assert main(["validate", str(tmp_path / "a" / "train.json")]) == 0
    for file in ("train.json", "eval.json", "manifest.json", "images/eval/00004.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    problems = load_problems(tmp_path / "a" / "eval.json", root=tmp_path / "a")
    store, task = ImageStore(tmp_path / "a"), TASKS[name]
    for index, problem in enumerate(problems):
        again = task.draw(np.random.default_rng([2, EVAL_STREAM, index]), scans.held_out(), task.canvas)
        assert (problem.problem, problem.solution, problem.task) == (again.problem, again.solution, task.task)
        assert (np.asarray(store.open(store.ref(problem.images[0]))) == again.pixels[..., None]).all()
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["task"] == name and set(manifest["train_scans"]).isdisjoint(manifest["eval_scans"])
