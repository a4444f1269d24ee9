"""`mmr1 report` of what `mmr1 eval` has left: its metrics and answers on a page, and two evaluations compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmr1.errors import ConfigurationError
from mmr1.report import build, build_evaluation, main
from tests.unit.report.evaluated import HEIGHT, WIDTH, write_evaluation
from tests.unit.report.synthetic import write_lines, write_run
from tests.unit.report.test_report import Page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "run/eval", tmp_path / "data")


def test_its_metrics_stand_in_a_table_with_intervals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    said, page = capsys.readouterr().out, Page(folder / "report.html")
    for task in json.loads((folder / "results.json").read_text())["tasks"]:
        value, low, high = (task["metrics"][task["headline"]][part] for part in ("value", "low", "high"))
        assert f"{value:.3f}" in page.text and f"{low:.3f} to {high:.3f}" in page.text
        assert f"{task['task']}: 20 problems" in said and f"{value:.4f}" in said
    assert "mean absolute error" in page.text and "accuracy at IoU 0.75" in page.text
    assert said.endswith("report.html\n") and "steps" not in said
    assert not (folder / "result.json").exists() and not (folder / "reward.png").exists(), "it is no run"


def test_its_answers_are_in_the_gallery_with_true_and_predicted_boxes(folder: Path) -> None:
    build_evaluation(folder)
    page = Page(folder / "report.html")
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert page.count("article") == page.count("img") == len(lines) == 40
    rewards = [attributes["data-reward"] for _, attributes in page.tags if "data-reward" in attributes]
    assert sorted(map(float, filter(None, rewards))) == sorted(line["reward"] for line in lines)
    found = [attributes for tag, attributes in page.tags if tag == "rect" and attributes["class"] == "found"]
    boxes = [line["parsed"]["bbox_2d"] for line in lines if line["task"] == "grounding" and line["parsed"]]
    expected = [(x1 * WIDTH / 1000, y1 * HEIGHT / 1000) for x1, y1, _, _ in boxes]
    assert [(float(one["x"] or ""), float(one["y"] or "")) for one in found] == expected
    true = [attributes for tag, attributes in page.tags if tag == "rect" and attributes["class"] == "true"]
    assert {(one["x"], one["y"], one["width"], one["height"]) for one in true} == {("12", "20", "48", "40")}
    names = {attributes["name"] for tag, attributes in page.tags if tag in ("select", "input")}
    assert names == {"task", "outcome", "low", "high", "text"}, "an evaluation has no steps to choose"
    assert "Question 3?" in page.text and "ended by length" in page.text and "picked for invalid_output" in page.text


def test_several_answers_to_a_problem_are_one_group(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval", tmp_path / "data", samples=4, problems=10)
    build_evaluation(folder)
    page = Page(folder / "report.html")
    assert page.count("article") == 10 and 10 < page.count("div", "row") <= 40


def test_the_page_is_bounded(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval", tmp_path / "data", problems=400)
    build_evaluation(folder)
    assert 60 < Page(folder / "report.html").count("div", "row") <= 120


def test_the_page_stands_alone_and_what_a_model_says_is_text(folder: Path) -> None:
    attack = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}"
    (line, *_) = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    line |= {name: attack for name in ("prompt", "question", "response", "solution", "detail", "version", "task")}
    write_lines(folder / "samples.jsonl", [line | {"components": {attack: 1.0}, "parsed": {"label": attack}}])
    identity = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(identity | {"question_template": attack, attack: attack}))
    results = json.loads((folder / "results.json").read_text())
    results["tasks"][0] |= {"task": attack, "metrics": {attack: {"value": 1.0}}}
    (folder / "results.json").write_text(json.dumps(results | {"model": attack}))
    (folder / "config.yaml").write_text(json.dumps({"run": attack}))
    build_evaluation(folder)
    text, page = (folder / "report.html").read_text(), Page(folder / "report.html")
    assert page.count("script") == 2 and "<script>alert" not in text and attack in page.text
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "://" not in text and "default-src 'none'" in text


def test_two_of_the_same_problems_show_differences_with_paired_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    this = write_evaluation(tmp_path / "a/trained", tmp_path / "data", skill=0.95, model="m/trained")
    other = write_evaluation(tmp_path / "a/base", tmp_path / "data", skill=0.2)
    comparison = build_evaluation(this, other)
    assert comparison is not None and (comparison.this_name, comparison.other_name) == ("trained", "base")
    clear = {(row.task, row.metric) for row in comparison.differences if row.is_clear}
    assert {("grounding", "mean_iou"), ("counting", "accuracy")} <= clear
    assert ("model", "m/trained", "m/tiny") in comparison.options
    assert main([str(this), "--compare", str(other)]) == 0
    said, page = capsys.readouterr().out, Page(this / "report.html")
    (row,) = [row for row in comparison.differences if (row.task, row.metric) == ("grounding", "mean_iou")]
    assert row.difference.value is not None and f"{row.difference.value:+.3f}" in page.text
    assert f"{row.difference.low:+.3f} to {row.difference.high:+.3f}" in page.text
    assert f"{row.difference.value:+.4f}" in said
    own = json.loads((this / "results.json").read_text())["tasks"]
    assert any(task["metrics"].get("mean_iou") == row.this.as_json() for task in own), "the seed is the evaluation's"


def test_one_that_has_not_ended_is_shown_and_not_compared(folder: Path, tmp_path: Path) -> None:
    (folder / "results.json").unlink()
    build_evaluation(folder)
    text = Page(folder / "report.html").text
    assert "results.json is missing: the evaluation has not ended" in text and "Question 3?" in text
    whole = write_evaluation(tmp_path / "b", tmp_path / "data")
    with pytest.raises(ConfigurationError, match=r"eval has no whole results\.json: the evaluation has not ended"):
        build_evaluation(whole, folder)


@pytest.mark.parametrize("name", ["evaluation.json", "results.json", "samples.jsonl", "config.yaml"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_any_file_may_be_cut(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    build_evaluation(folder)


def refusal(capsys: pytest.CaptureFixture[str], *words: Path | str) -> str:
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data", write_run(tmp_path / "r", num_steps=2)
    this, fewer = write_evaluation(tmp_path / "a", data), write_evaluation(tmp_path / "b", data, problems=20)
    line = refusal(capsys, this, "--compare", fewer)
    assert "are of different problems (eval_file 40 problems (0123456789ab) and 20 problems" in line
    assert f"{run} is not an evaluation's folder" in refusal(capsys, this, "--compare", run)
    assert f"{this} is what `mmr1 eval` has left, and no run" in refusal(capsys, run, "--compare", this)
    with pytest.raises(ConfigurationError, match="and no run"):
        build(this)
    half = write_evaluation(tmp_path / "c", data)
    lines = (half / "samples.jsonl").read_text().splitlines(keepends=True)
    (half / "samples.jsonl").write_text("".join(lines[:-1]))
    assert "do not hold all answers to the same problems" in refusal(capsys, this, "--compare", half)
    (half / "samples.jsonl").write_text("".join([*lines[:-1], "{}\n"]))
    assert "do not hold all answers to the same problems" in refusal(capsys, this, "--compare", half)


def test_a_folder_of_neither_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation that was refused by a rollout server has left its services' config.yaml alone."""
    (tmp_path / "config.yaml").write_text("{run: x}")
    assert "is not a run's folder (none of run.json, metrics.jsonl" in refusal(capsys, tmp_path)
    run = write_run(tmp_path / "r", num_steps=2)
    assert "is not a run's folder" in refusal(capsys, run, "--compare", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "r"], "nothing is written there"
    (tmp_path / "run.json").write_text("{}")
    assert main([str(tmp_path)]) == 0, "a run that has begun"
