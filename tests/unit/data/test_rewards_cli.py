"""`mmr1 rewards`: every task's example is explained, what cannot be scored is refused in one line, boxes are drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmr1 import rewards_cli
from mmr1.cli import main as mmr1
from mmr1.drawn_boxes import MAX_BOXES
from mmr1.reward_program import Explanation
from mmr1_reward_server import explaining
from mmr1_reward_server.api import Item, Outcome, TaskInfo
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.rewards import builtin_tasks

REGISTRY: Registry = builtin_tasks()
Run = Callable[..., tuple[int, str, str]]


def _tasks() -> list[TaskInfo]:
    return explaining.describe(REGISTRY).tasks


def _explain(item: Item) -> Explanation:
    told = explaining.explain(REGISTRY, item, max_response_chars=100_000)
    return Explanation.model_validate_json(told.model_dump_json())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command, with the reward server's own code in this process: as a program it takes seconds to start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rewards_cli, "own_tasks", _tasks)
    monkeypatch.setattr(rewards_cli, "explain", _explain)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = mmr1(["rewards", *arguments])
        return code, *capsys.readouterr()

    return call


def test_alone_it_lists_every_task_in_a_line(run: Run) -> None:
    code, out, err = run()
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in lines] == [task.name for task in REGISTRY]
    assert all(len(line) <= 132 and line.endswith(".") for line in lines)


@pytest.mark.parametrize("name", [task.name for task in REGISTRY])
def test_every_tasks_own_example_is_explained(run: Run, name: str) -> None:
    example = REGISTRY[name].example
    assert example is not None
    code, out, err = run("try", "--task", name)
    assert (code, err) == (0, "")
    told = {line[:17].strip(): line[17:] for line in out.splitlines() if line[:17].strip()}
    assert told["reward"] == f"{example.result.reward:.6g}"
    assert told["outcome"].startswith(f"{example.result.outcome.value}: ")
    for component, value in example.result.components.items():
        assert f"{component} " in out and f"{value:.6g}" in out
    assert told["formula"] and told["floor"] == f"{REGISTRY[name].floor:g}"
    if name in ("grounding", "detection"):
        with Image.open(f"mmr1-try-{name}.png") as picture:
            assert picture.width == 1008


def test_detection_says_which_boxes_belong_together(run: Run) -> None:
    truth = [{"bbox_2d": [0, 0, 100, 100], "label": "7"}, {"bbox_2d": [200, 0, 250, 50], "label": "3"}]
    said = [{"bbox_2d": [300, 0, 350, 50], "label": "9"}, {"bbox_2d": [0, 0, 50, 100], "label": "7"}]
    response = f"<answer>{json.dumps(said)}</answer>"
    _, out, _ = run("try", "--task", "detection", "--response", response, "--solution", json.dumps(truth))
    for line in (
        "  box 1          [300, 0, 350, 50] 9 matches no true box",
        "  box 2          [0, 0, 50, 100] 7 with true box 1 (7): IoU 0.500",
        "  true 2         [200, 0, 250, 50] 3 is found by none",
    ):
        assert line in out.splitlines()


def test_boxes_that_cannot_be_shown_shift_no_others(run: Run) -> None:
    """What lies a billion pixels away is not drawn, and the places of the others are those of their lists."""
    far = {"bbox_2d": [0, 0, 1e10, 1e10], "label": "7"}
    truth = [far, {"bbox_2d": [0, 0, 100, 100], "label": "7"}, {"bbox_2d": [200, 0, 250, 50], "label": "3"}]
    said = [{"bbox_2d": [5e10, 0, 6e10, 10], "label": "7"}, {"bbox_2d": [0, 0, 50, 100], "label": "7"}]
    response = f"<answer>{json.dumps(said)}</answer>"
    _, out, _ = run("try", "--task", "detection", "--response", response, "--solution", json.dumps(truth))
    boxes = [line for line in out.splitlines() if line.startswith(("  box", "  true"))]
    assert boxes == [
        "  box 2          [0, 0, 50, 100] 7 with true box 2 (7): IoU 0.500",
        "  true 2         [0, 0, 100, 100] 7",
        "  true 3         [200, 0, 250, 50] 3 is found by none",
    ]


def test_a_true_box_that_a_box_behind_the_shown_ones_has_found_is_found(run: Run) -> None:
    said = [{"bbox_2d": [500 + place, 500, 501 + place, 510], "label": "7"} for place in range(MAX_BOXES)]
    said.append({"bbox_2d": [0, 0, 50, 100], "label": "7"})
    truth = [{"bbox_2d": [0, 0, 50, 100], "label": "7"}]
    response = f"<answer>{json.dumps(said)}</answer>"
    _, out, _ = run("try", "--task", "detection", "--response", response, "--solution", json.dumps(truth))
    assert "  true 1         [0, 0, 50, 100] 7" in out.splitlines()


def test_a_box_of_a_resized_image_is_brought_to_pixels_once(run: Run) -> None:
    """VLM-R1's example: said of an image of 280 x 280, which is 560 x 280."""
    _, out, _ = run("try", "--task", "vlmr1_iou")
    assert "  box 1          [20, 10, 120, 110]" in out.splitlines()


def test_the_picture_has_both_boxes_where_they_are(run: Run, tmp_path: Path) -> None:
    """Response in thousandths, truth in pixels: on the picture's own pixels, by colour."""
    Image.new("RGB", (400, 200), "black").save(tmp_path / "photo.png")
    params = '{"response_space": "normalized_1000"}'
    arguments = ("--image", "photo.png", "--params", params, "--out", "drawn.png", "--solution", "[40, 40, 200, 160]")
    code, out, _ = run("try", "--task", "grounding", "--response", "<answer>[500, 250, 900, 750]</answer>", *arguments)
    assert code == 0 and out.splitlines()[-1] == "drawn.png"
    assert "  box 1          [200, 50, 360, 150] with true box 1: IoU 0.000" in out.splitlines()
    assert "  true 1         [40, 40, 200, 160]" in out.splitlines()
    with Image.open("drawn.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    black = np.argwhere((pixels == 0).all(axis=2))
    top, left = black.min(axis=0)
    scale = (black.max(axis=0)[1] - left + 1) / 400
    for colour, wanted in (((47, 227, 157), (40, 40, 200, 160)), ((255, 154, 61), (200, 50, 360, 150))):
        # The image's part of the picture alone: the legend below has these colours too.
        inside = pixels[top : top + round(200 * scale)]
        rows = np.argwhere((abs(inside - np.array(colour)) < 12).all(axis=2))
        columns = np.bincount(rows[:, 1], minlength=inside.shape[1])
        edges = np.flatnonzero(columns > 40 * scale)  # upright edges, and no letter is as high
        found = ((edges.min() - left) / scale, (edges.max() - left) / scale)
        assert found == pytest.approx((wanted[0], wanted[2]), abs=3)


def test_digits_of_a_page_stay_text_and_a_count_a_number(run: Run) -> None:
    _, out, _ = run("try", "--task", "ocr", "--response", "<answer>0123</answer>", "--solution", "0123")
    assert "reward           1\n" in out
    _, out, _ = run("try", "--task", "counting", "--response", "<answer>3</answer>", "--solution", "3")
    assert "reward           1\n" in out and "mmr1-try" not in out, "nothing to draw"


def test_a_response_with_nothing_to_score_is_explained_too(run: Run) -> None:
    code, out, _ = run("try", "--task", "grounding", "--response", "there\x1b[31m", "--solution", "[1, 2, 3, 4]")
    assert code == 0 and "invalid_output: the response holds nothing to score" in out
    assert "\x1b" not in out


BOX = ["--response", "[1, 2, 3, 4]", "--solution", "[1, 2, 3, 4]"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["try"], "--task"),
        (["tri"], "invalid choice: 'tri'"),
        (["try", "--task", "gruonding"], "did you mean 'grounding'?"),
        (["try", "--task", "zzz"], "there are counting, grounding"),
        (["try", "--task", "grounding", "--response", "x"], "--solution is missing"),
        (["try", "--task", "grounding", "--solution", "[1, 2, 3, 4]"], "--response is missing"),
        (["try", "--task", "grounding", "--response", "x", "--solution", "nowhere"], "not JSON"),
        (["try", "--task", "grounding", "--response", "x", "--solution", "[4, 3, 2, 1]"], "must be a box"),
        (["try", "--task", "grounding", *BOX, "--params", "{"], "--params is not JSON"),
        (["try", "--task", "grounding", *BOX, "--params", "[]"], "--params is no object"),
        (["try", "--task", "grounding", *BOX, "--params", '{"scor": 1}'], "scor"),
        (["try", "--task", "grounding", *BOX, "--params", '{"response_space": "normalized_1"}'], "send image_size"),
        (["try", "--task", "grounding", *BOX, "--image", "gone.png"], "gone.png: does not exist"),
        (["try", "--task", "grounding", *BOX, "--image-size", "64"], "'64' is not WIDTHxHEIGHT"),
        (["try", "--task", "grounding", *BOX, "--image-size", "999999999x1", "--out", "no/such/a.png"], "cannot write"),
        (["try", "--task", "counting", "--response", "3", "--solution", "3", "--out", "a.png"], "draws nothing"),
        (["--url", "http://127.0.0.1:1"], "--url http://127.0.0.1:1: "),
        (["--url", "nonsense"], "--url nonsense: "),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("mmr1: error: ") and err.count("\n") == 1 and said in err


def test_a_scorer_that_fails_is_no_mistake_of_the_caller(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"id": "1", "outcome": "verifier_error", "reward": None, "detail": "scorer of ocr failed: it broke"}
    told = Explanation.model_validate({"result": failed, "refused": False, "pairs": None})
    monkeypatch.setattr(rewards_cli, "explain", lambda item: told)
    code, out, _ = run("try", "--task", "ocr")
    assert code == 0 and "never the model's fault" in out and "reward           none" in out


def program(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmr1_reward_server", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)


def test_the_program_itself_explains_what_the_server_would_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = REGISTRY["detection"].example
    assert example is not None
    assert mmr1(["rewards", "try", "--task", "detection"]) == 0
    out = capsys.readouterr().out
    assert f"reward           {example.result.reward}" in out and "with true box 1 (dog): IoU 0.500" in out
    refused = program("--explain", "-", text='{"id": "1"}')
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "give one item" in refused.stderr
    gone = program("--explain", "gone.json")
    assert gone.returncode == 2 and "gone.json" in gone.stderr


def test_explaining_is_scoring() -> None:
    for task in REGISTRY:
        assert task.example is not None
        told = explaining.explain(REGISTRY, task.example.item, max_response_chars=1000)
        assert told.result == task.example.result and not told.refused
        assert (told.pairs is not None) == (task.name == "detection")
    bad = Item(id="1", task="couting", response="3", solution=3)
    told = explaining.explain(REGISTRY, bad, max_response_chars=1000)
    assert told.refused and told.result.outcome == Outcome.VERIFIER_ERROR


def test_a_server_that_runs_has_the_word(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result counts; boxes are paired only where the program here reads the response alike."""

    class Server:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        async def __aenter__(self) -> Server:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def tasks(self) -> list[TaskInfo]:
            return _tasks()

        async def score_or_raise(self, items: list[Item]) -> list[Any]:
            return [_explain(items[0]).result.model_copy(update={"reward": 0.125, "detail": self.detail})]

        detail = "2 boxes, 2 expected, 1 matched"

    monkeypatch.setattr(rewards_cli, "RewardClient", Server)
    _, out, _ = run("try", "--task", "detection", "--url", "http://rewards")
    assert "reward           0.125" in out and "IoU 0.500" in out
    Server.detail = "another reading"
    _, out, _ = run("--url", "http://rewards", "try", "--task", "detection")
    assert "reward           0.125" in out and "IoU 0.500" not in out
