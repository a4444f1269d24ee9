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


def finish(run_dir: Path, before: float | None, after: float | None, rewards: list[float]) -> Path:
    run_dir.mkdir(parents=True)
    heldout = {"n": 64, "before": {"greedy": before, "sampled": 0.1}, "after": {"greedy": after, "sampled": 0.2}}
    (run_dir / "result.json").write_text(json.dumps({"seconds": 12.4, "heldout": heldout}))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps({"reward_mean": reward}) + "\n" for reward in rewards))
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
