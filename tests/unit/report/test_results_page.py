"""`make results`: which runs are missing, what is kept of a run, and a page that holds no figure but measured ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import results
    import results_page

    return SimpleNamespace(results=results, page=results_page)


def finish(run_dir: Path, before: float | None, after: float | None, rewards: list[float | None]) -> Path:
    run_dir.mkdir(parents=True)
    heldout = {"n": 64, "before": {"greedy": before, "sampled": 0.1}, "after": {"greedy": after, "sampled": 0.2}}
    (run_dir / "result.json").write_text(json.dumps({"seconds": 12.4, "heldout": heldout}))
    lines = [json.dumps({"step": step, "reward_mean": reward}) for step, reward in enumerate(rewards, start=1)]
    (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return run_dir


def test_what_is_there_is_not_run_again(made: SimpleNamespace, tmp_path: Path) -> None:
    assert len(made.results.missing(["ocr", "grounding"], tmp_path)) == 8
    (tmp_path / "ocr-seed1.json").touch()
    (tmp_path / "grounding-control.json").touch()
    missing = made.results.missing(["ocr", "grounding"], tmp_path)
    assert missing == [
        ("ocr", "seed0"),
        ("grounding", "seed0"),
        ("grounding", "seed1"),
        ("ocr", "seed2"),
        ("grounding", "seed2"),
        ("ocr", "control"),
    ]
    assert "--reward_shuffle" in made.results.command("ocr", "control")
    assert made.results.command("ocr", "seed2")[-2:] == ["--seed", "2"]


def test_options_of_the_runs_are_options(made: SimpleNamespace) -> None:
    from mmr1.config import RunConfig

    for name in ("seed0", "control"):
        options = [word[2:] for word in made.results.command("detection", name) if word.startswith("--")]
        assert set(options) <= set(RunConfig.model_fields)


def test_the_page(made: SimpleNamespace, tmp_path: Path) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    figures = {"seed0": (0.5, 0.7), "seed1": (0.5, 0.72), "seed2": (0.5, 0.66), "control": (0.5, 0.41)}
    for name, (before, after) in figures.items():
        run_dir = finish(tmp_path / "runs" / name, before, after, [0.1, 0.25, 0.3])
        made.page.keep(run_dir, results / f"grounding-{name}.json")
    made.page.keep(finish(tmp_path / "runs" / "more", 0.2, 0.3, [0.5]), results / "ocr-seed0.json")
    assert made.page.write_page(results, docs) == ["grounding"]
    text = (docs / "results.md").read_text()
    assert "| grounding | mean IoU | 64 | 0.500 | 0.693 | +0.193 | 0.060 | -0.090 |" in text
    assert "| grounding, control | 0.500 | 0.410 | -0.090 | 12 |" in text
    assert "| ocr" not in text and "0.300" not in text
    assert re.findall(r"\(images/(\S+)\)", text) == ["results-grounding.png"]
    assert (docs / "images" / "results-grounding.png").read_bytes().startswith(b"\x89PNG")


def test_no_page_without_measured_runs(made: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task has its 4 runs"):
        made.page.write_page(tmp_path, tmp_path / "docs")
    with pytest.raises(ValueError, match="not a run that was measured to its end"):
        made.page.keep(finish(tmp_path / "cut", 0.5, None, [0.1]), tmp_path / "kept" / "ocr-seed0.json")
    assert not (tmp_path / "kept" / "ocr-seed0.json").exists() and not (tmp_path / "docs").exists()
    assert not list((tmp_path / "kept").iterdir())
    with pytest.raises(ValueError, match="no step has a reward"):
        made.page.keep(finish(tmp_path / "unscored", 0.5, 0.6, [None]), tmp_path / "kept" / "ocr-seed0.json")


def test_a_step_without_a_reward_is_a_gap(made: SimpleNamespace, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("seed0", "seed1", "seed2", "control"):
        run_dir = finish(tmp_path / name, 0.5, 0.6, [None, 0.25, None, 0.75])
        with (run_dir / "metrics.jsonl").open("a") as lines:
            lines.write('{"step": 2, "reward_mean": 0.5}\n')  # the learner went back to a checkpoint
        made.page.keep(run_dir, results / f"ocr-{name}.json")
    assert json.loads((results / "ocr-seed0.json").read_text())["rewards"] == [None, 0.5, None, 0.75]
    assert made.page.write_page(results, tmp_path / "docs") == ["ocr"]


def test_a_run_without_figures_is_named_and_the_others_are_made(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("REPOSITORY", tmp_path), ("RESULTS", tmp_path / "docs" / "results")):
        monkeypatch.setattr(made.results, name, value)
    monkeypatch.setattr("sys.argv", ["results.py", "--tasks", "ocr"])

    def demo(words: list[str], cwd: Path) -> SimpleNamespace:
        name = words[words.index("--run") + 1].removeprefix("results-")
        if name == "ocr-seed0":
            finish(cwd / made.results.RUNS / name, 0.5, None, [0.1])
        elif name != "ocr-seed1":  # which has ended well and left nothing
            finish(cwd / made.results.RUNS / name, 0.5, 0.6, [0.1])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(made.results.subprocess, "run", demo)
    assert made.results.main() == 1
    errors = capsys.readouterr().err
    assert "ocr, seed0: its figures are not whole" in errors and "ocr, seed1: its figures are not whole" in errors
    kept = sorted(path.name for path in (tmp_path / "docs" / "results").iterdir())
    assert kept == ["ocr-control.json", "ocr-seed2.json"]
