"""`make results`: which runs are missing, what is kept of a run, and a page that holds no figure but measured ones."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmr1.config import RunConfig, save_config
from mmr1.evaluation import HEADLINES

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import results
    import results_page

    return SimpleNamespace(results=results, page=results_page)


def finish(
    run_dir: Path,
    before: float | None,
    after: float | None,
    rewards: list[float | None],
    task: str = "grounding",
    seconds: int = 95,
    **options: Any,
) -> Path:
    """The folder of a run that took so long; the interval of what was measured before it ends 0.03 higher."""
    run_dir.mkdir(parents=True)
    given = {"model": "model", "train_file": "train.json", "num_steps": 4, "per_device_batch_size": 8}
    save_config(RunConfig(**{**given, "task": task, **options}), run_dir / "config.yaml")
    heldout = {"n": 64, "before": {"greedy": before, "sampled": 0.1}, "after": {"greedy": after, "sampled": 0.2}}
    interval = {"greedy": {HEADLINES[task]: {"value": before, "high": (before or 0.0) + 0.03}}}
    result = {"seconds": 12.4, "heldout": heldout, "tasks": {task: {"before": interval}}}
    (run_dir / "result.json").write_text(json.dumps(result))
    os.utime(run_dir / "config.yaml", (1e9, 1e9))
    os.utime(run_dir / "result.json", (1e9 + seconds, 1e9 + seconds))
    lines = [json.dumps({"step": step, "reward_mean": reward}) for step, reward in enumerate(rewards, start=1)]
    (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    os.utime(run_dir / "metrics.jsonl", (1e9 + 1, 1e9 + 1))
    return run_dir


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_what_is_there_is_not_run_again(made: SimpleNamespace, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.results, "recipe_today", lambda task, _: {"options": task, "model": "m"})
    assert len(made.results.missing(["ocr", "grounding"], model)) == 8
    for task, name in (("ocr", "seed1"), ("grounding", "control"), ("grounding", "seed2")):
        path = model / f"{task}-{name}.json"
        made.page.keep(finish(model / path.stem, 0.5, 0.6, [0.1], task=task), path, model)
        kept = json.loads(path.read_text())
        kept["recipe"] = {"options": task if name != "seed2" else "those of then", "model": "m"}
        path.write_text(json.dumps(kept))
    (model / "ocr-seed0.json").write_text("{")
    assert made.results.missing(["ocr", "grounding"], model) == [
        ("ocr", "seed0"),
        ("grounding", "seed0"),
        ("grounding", "seed1"),
        ("ocr", "seed2"),
        ("grounding", "seed2"),
        ("ocr", "control"),
    ]
    assert "--reward_shuffle" in made.results.command("ocr", "control")
    assert made.results.command("ocr", "seed2")[-2:] == ["--seed", "2"]


def test_the_shipped_examples_have_a_recipe(made: SimpleNamespace) -> None:
    import results_recipe

    for task in made.page.METRICS:
        assert {"options", "model"} <= set(results_recipe.recipe_today(task, made.results.REPOSITORY))


def test_options_of_the_runs_are_options(made: SimpleNamespace) -> None:
    for name in ("seed0", "control"):
        options = [word[2:] for word in made.results.command("detection", name) if word.startswith("--")]
        assert set(options) <= set(RunConfig.model_fields)


FIGURES = {"seed0": (0.5, 0.7), "seed1": (0.5, 0.72), "seed2": (0.5, 0.66), "control": (0.5, 0.41)}


def keep(made: SimpleNamespace, root: Path, figures: dict[str, tuple[float, float]] = FIGURES, **options: Any) -> Path:
    """Runs of grounding with these figures, kept in `results`."""
    for name, (before, after) in figures.items():
        run_dir = finish(root / "runs" / name, before, after, [0.1, 0.25, 0.3], **options)
        made.page.keep(run_dir, root / "results" / f"grounding-{name}.json", root)
    return root / "results"


def test_the_page(made: SimpleNamespace, model: Path) -> None:
    results, docs = keep(made, model), model / "docs"
    made.page.keep(finish(model / "more", 0.2, 0.3, [0.5], task="ocr"), results / "ocr-seed0.json", model)
    assert made.page.write_page(results, docs) == {"grounding": []}
    text = (docs / "results.md").read_text()
    assert "| grounding | mean IoU | 64 | 0.500 | 0.693 | +0.193, +0.160 | 0.060 | -0.090 | yes |" in text
    assert "| grounding, control | 0.500 | 0.410 | -0.090 | 12 | 95 |" in text
    assert "| ocr" not in text and "0.300" not in text
    assert re.findall(r"\(images/(\S+)\)", text) == ["results-grounding.png"]
    assert (docs / "images" / "results-grounding.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("figures", "options", "lacking"),
    [
        ({"seed2": (0.5, 0.6)}, {}, ["gain"]),  # 0.1 above, and 0.12 below the best
        ({"control": (0.5, 0.529)}, {}, []),
        ({"control": (0.5, 0.531)}, {}, ["control"]),
        ({}, {"seconds": 600}, ["time"]),
    ],
)
def test_what_a_task_falls_short_of_is_said(
    made: SimpleNamespace, model: Path, figures: dict[str, tuple[float, float]], options: Any, lacking: list[str]
) -> None:
    results = keep(made, model, {**FIGURES, **figures}, **options)
    assert made.page.write_page(results, model / "docs") == {"grounding": lacking}
    assert (f"| no: {', '.join(lacking)} |" if lacking else "| yes |") in (model / "docs" / "results.md").read_text()


def test_runs_of_several_recipes_make_no_page(made: SimpleNamespace, model: Path) -> None:
    results = keep(made, model)
    for what, change in (("options", {"learning_rate": 0.5}), ("options", {"num_steps": 5}), ("model", {})):
        if what == "model":
            (model / "model" / "model.safetensors").write_bytes(b"other weights")
        run_dir = finish(model / f"other-{change}", 0.5, 0.7, [0.1], **change)
        made.page.keep(run_dir, results / "grounding-seed1.json", model)
        with pytest.raises(ValueError, match=rf"grounding-seed1.json: other {what} than seed 0 was made with"):
            made.page.write_page(results, model / "docs")


def test_seeds_places_and_the_control_are_one_recipe(made: SimpleNamespace, model: Path) -> None:
    import results_recipe

    found = [
        results_recipe.recipe_of_run(finish(model / f"{number}", 0.5, 0.6, [0.1], **options), model)
        for number, options in enumerate(
            ({}, {"seed": 3, "run": "other"}, {"reward_shuffle": True, "redis_port": 7000})
        )
    ]
    assert found[0] == found[1] == found[2] and set(found[0]) == {"options", "model"}
    (model / "train.json").write_text("[]")
    drawn = results_recipe.recipe_of_run(finish(model / "drawn", 0.5, 0.6, [0.1]), model)
    assert set(drawn) == {"options", "model", "problems"} and not results_recipe.differs(drawn, found[0])


def test_no_page_without_measured_runs(made: SimpleNamespace, model: Path) -> None:
    kept = model / "kept"
    with pytest.raises(ValueError, match="no task has its 4 runs"):
        made.page.write_page(kept, model / "docs")
    with pytest.raises(ValueError, match="not a run that was measured to its end"):
        made.page.keep(finish(model / "cut", 0.5, None, [0.1]), kept / "ocr-seed0.json", model)
    assert not (kept / "ocr-seed0.json").exists() and not (model / "docs").exists()
    assert not list(kept.iterdir())
    with pytest.raises(ValueError, match="no step has a reward"):
        made.page.keep(finish(model / "unscored", 0.5, 0.6, [None]), kept / "ocr-seed0.json", model)


def test_a_step_without_a_reward_is_a_gap(made: SimpleNamespace, model: Path) -> None:
    for name in FIGURES:
        run_dir = finish(model / name, 0.5, 0.6, [None, 0.25, None, 0.75])
        with (run_dir / "metrics.jsonl").open("a") as lines:
            lines.write('{"step": 2, "reward_mean": 0.5}\n')  # the learner went back to a checkpoint
        made.page.keep(run_dir, model / "results" / f"grounding-{name}.json", model)
    assert json.loads((model / "results" / "grounding-seed0.json").read_text())["rewards"] == [None, 0.5, None, 0.75]
    assert set(made.page.write_page(model / "results", model / "docs")) == {"grounding"}


def test_a_run_without_figures_is_named_and_the_others_are_made(
    made: SimpleNamespace, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path = model
    for name, value in (("REPOSITORY", tmp_path), ("RESULTS", tmp_path / "docs" / "results")):
        monkeypatch.setattr(made.results, name, value)
    monkeypatch.setattr("sys.argv", ["results.py", "--tasks", "ocr"])

    def demo(words: list[str], cwd: Path) -> SimpleNamespace:
        name = words[words.index("--run") + 1].removeprefix("results-")
        if name == "ocr-seed0":
            finish(cwd / made.results.RUNS / name, 0.5, None, [0.1], task="ocr")
        elif name != "ocr-seed1":  # which has ended well and left nothing
            finish(cwd / made.results.RUNS / name, 0.5, 0.6, [0.1], task="ocr")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(made.results.subprocess, "run", demo)
    assert made.results.main() == 1
    errors = capsys.readouterr().err
    assert "ocr, seed0: its figures are not whole" in errors and "ocr, seed1: its figures are not whole" in errors
    kept = sorted(path.name for path in (tmp_path / "docs" / "results").iterdir())
    assert kept == ["ocr-control.json", "ocr-seed2.json"]
