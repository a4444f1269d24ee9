"""The panel reads what the learner has written so far, half a line included."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

from rich.console import Console

from mmr1.live import RunFollower, follow, panel, sparkline, summary

STEP = {
    "step": 1,
    "time": 1.0,
    "num_steps": 60,
    "seconds": 2.04,
    "reward_mean": 0.4375,
    "lag_mean": 0.5,
    "tokens_per_second": 1234.5,
    "kl_k3": 0.00012,
    "entropy": 0.71,
    "temperature": 1.0,
}


def line(step: int, time: float | None = None) -> str:
    return json.dumps(STEP | {"step": step, "time": time or float(step)}) + "\n"


def text_of(renderable: object) -> str:
    screen = io.StringIO()
    Console(file=screen, width=100).print(renderable)
    return screen.getvalue()


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    follower = RunFollower(tmp_path)
    assert follower.look() == [] and follower.state.phase == "starting"
    metrics = tmp_path / "metrics.jsonl"
    second = line(2)
    metrics.write_text(line(1) + second[:10])
    assert [step["step"] for step in follower.look()] == [1]
    with metrics.open("a") as file:
        file.write(second[10:])
    assert [step["step"] for step in follower.look()] == [2]
    assert follower.look() == []
    assert [step["step"] for step in follower.state.steps] == [1, 2]


def test_a_learner_that_goes_on_from_a_checkpoint_takes_steps_back(tmp_path: Path) -> None:
    """It replaces the file by one that lacks the steps it lost, and then trains them again."""
    follower = RunFollower(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(map(line, range(1, 9))))
    assert len(follower.look()) == 8
    rewound = tmp_path / "metrics.jsonl.writing"
    rewound.write_text("".join(map(line, range(1, 5))))
    rewound.replace(metrics)
    with metrics.open("a") as file:
        file.write("".join(line(step, time=20.0 + step) for step in range(5, 12)))  # longer than it was
    assert [step["step"] for step in follower.look()] == [5, 6, 7, 8, 9, 10, 11]
    assert [step["step"] for step in follower.state.steps] == list(range(1, 12))


def test_the_panel_shows_every_figure(tmp_path: Path) -> None:
    follower = RunFollower(tmp_path)
    assert "starting" in text_of(panel(follower.state, "demo"))
    (tmp_path / "status.json").write_text(json.dumps({"phase": "training", "detail": "step 2"}))
    (tmp_path / "metrics.jsonl").write_text(line(1) + line(2))
    follower.look()
    shown = text_of(panel(follower.state, "demo"))
    for text in ("training", "2/60", "0.438", "0.50", "1,23", "0.0001", "0.710", "1.00", "tokens/s", "▁"):
        assert text in shown


def test_a_step_without_training_shows_dashes() -> None:
    assert "reward -" in summary({"step": 3, "num_steps": 60, "reward_mean": None})


def test_sparkline_averages_neighbours_and_spans_the_range() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.5]) == "▁"
    assert sparkline([0.0, 1.0]) == "▁█"
    assert len(sparkline([float(n) for n in range(1000)], width=40)) == 40


async def test_off_a_terminal_it_is_a_line_every_few_steps_and_the_last(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"phase": "training"}))
    (tmp_path / "metrics.jsonl").write_text("".join(map(line, range(1, 61))))
    screen = io.StringIO()
    following = asyncio.create_task(follow(tmp_path, Console(file=screen, width=200), "demo"))
    async with asyncio.timeout(20):
        while "step 60/60" not in screen.getvalue():
            await asyncio.sleep(0.02)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    lines = screen.getvalue().splitlines()
    assert lines[0] == "training"
    assert len(lines) == 21 and lines[-1].startswith("step 60/60  reward 0.438")


async def test_on_a_terminal_the_last_step_is_shown(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True)
    following = asyncio.create_task(follow(tmp_path, console, "demo"))
    async with asyncio.timeout(20):
        while "starting" not in screen.getvalue():
            await asyncio.sleep(0.02)
    (tmp_path / "metrics.jsonl").write_text(line(60))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert "60/60" in screen.getvalue()
