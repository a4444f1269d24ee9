"""Two runs on one page: curves of both, held-out metrics side by side, and only the options that differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.report import build, main
from mmr1.report.compare import compare, differing
from mmr1.report.curves import curves
from mmr1.report.held_out import series
from mmr1.report.run_files import read_run
from tests.unit.report.mixed import write_mixed_run
from tests.unit.report.synthetic import write_lines, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    this = write_mixed_run(folder, name="lower", num_steps=12)
    other = write_mixed_run(folder, name="higher", num_steps=9, seed=1, learning_rate=3e-4, objective="dapo")
    return this, other


def test_only_options_that_differ_are_listed() -> None:
    this = {"run": "a", "run_dir": "x", "seed": 0, "rewards": ["task"], "kl": []}
    other = {"run": "b", "run_dir": "y", "seed": 0, "rewards": ["task"], "zero_stage": 2}
    assert differing(this, other) == [("kl", "[]", "not set"), ("zero_stage", "not set", "2")]
    assert differing(this, this) == []


def test_places_ports_and_files_of_secrets_are_no_difference() -> None:
    ports = [name for name in RunConfig.model_fields if name.endswith("_port")]
    files = [name for name in RunConfig.model_fields if "token" in name or "password" in name or "_tls_" in name]
    assert "learner_metrics_port" in ports and "rollout_token_file" in files and "reward_tls_ca" in files
    others = ["run", "run_dir", "host", "redis_url", "reward_url", "image_cache", "rollout_client_key"]
    places = {*ports, *files, *others}
    assert differing({name: "a" for name in places}, {name: "b" for name in places}) == []
    everything = {row[0] for row in differing({}, dict.fromkeys(RunConfig.model_fields, 1))}
    assert {"model", "train_file", "seed", "max_restarts", "image_root"} <= everything


def test_each_chart_has_both_runs_curves_at_their_own_steps(runs: tuple[Path, Path]) -> None:
    this, other = map(read_run, runs)
    charts = {chart.title: chart for chart in compare(this, other).charts}
    assert list(charts) == [chart.title for chart in curves(this)]
    reward = charts["Reward"]
    assert reward.steps == list(range(1, 13)) and not reward.stacked
    mine, theirs = reward.lines
    assert (mine.name, theirs.name) == ("reward (lower)", "reward (higher)")
    assert list(mine.values) == [record["reward_mean"] for record in this.metrics]
    assert list(theirs.values) == [record["reward_mean"] for record in other.metrics] + [None] * 3
    assert theirs.partner == 0 and not charts["Outcomes of scoring"].stacked


def test_a_curve_keeps_its_colour_and_what_the_other_alone_has_is_shown(tmp_path: Path) -> None:
    this = read_run(write_run(tmp_path / "a", num_steps=5))
    other = read_run(write_mixed_run(tmp_path / "b", num_steps=5))
    charts = {chart.title: chart for chart in compare(this, other).charts}
    kl = charts["KL from the reference"]
    assert [(line.name, line.partner) for line in kl.lines] == [
        ("k3 (demo)", None), ("k3 (mixed)", 0), ("k1 (mixed)", 1), ("exact (mixed)", 2)
    ]  # fmt: skip
    alone = charts["Reward by task"]
    assert len(alone.lines) == 4 and {line.partner for line in alone.lines} == {0, 1, 2, 3}


def test_held_out_metrics_stand_side_by_side_with_their_difference(runs: tuple[Path, Path]) -> None:
    this, other = map(read_run, runs)
    rows = {(row.task, row.mode): row for row in compare(this, other).held_out}
    assert len(rows) == 8 and all(row.headline for row in rows.values())
    row = rows["grounding", "greedy"]
    assert row.this is not None and row.other is not None
    assert row.metric == "mean_iou" and row.this.steps == [0, 6, 12] and row.other.steps == [0, 4, 9]
    assert row.difference == pytest.approx(row.this.last.value - row.other.last.value)


def test_an_older_runs_accuracies_are_a_metric_too(tmp_path: Path) -> None:
    found = series(read_run(write_run(tmp_path)).evaluations)
    assert {key: (one.before.value, one.after.value) for key, one in found.items() if one.before and one.after} == {
        ("counting", "greedy", "accuracy"): (0.525, 0.772),
        ("counting", "sampled", "accuracy"): (0.405, 0.667),
    }


def test_rewards_by_task_of_an_older_run_come_from_its_completions(tmp_path: Path) -> None:
    run = write_mixed_run(tmp_path, num_steps=3)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [{k: v for k, v in line.items() if k != "reward_by_task"} for line in metrics])
    lines = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    wanted = [line["reward"] for line in lines if (line["step"], line["task"]) == (2, "grounding")]
    chart = next(chart for chart in curves(read_run(run)) if chart.title == "Reward by task")
    grounding = next(line for line in chart.lines if line.name == "grounding")
    assert grounding.values[1] == pytest.approx(sum(wanted) / len(wanted))


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    this, other = write_run(tmp_path / "a", num_steps=2), write_run(tmp_path / "b", num_steps=2)
    found = compare(read_run(this), read_run(other))
    assert (found.this_name, found.other_name) == (str(this), str(other))


def test_what_is_no_run_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, num_steps=2)
    assert main([str(run), "--compare", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmr1: error: run folder") and error.count("\n") == 1
    tuned = tmp_path / "sft"
    tuned.mkdir()
    write_lines(tuned / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    for arguments in ([str(run), "--compare", str(tuned)], [str(tuned), "--compare", str(run)]):
        assert main(arguments) == 2
        assert "mmr1 sft" in capsys.readouterr().err
    assert not (run / "report.html").exists()
    with pytest.raises(ConfigurationError):
        build(run, tmp_path)
