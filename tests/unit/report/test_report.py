"""A run's folder to result.json, reward.png and report.html: whole runs, cut runs, and hostile completions."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from mmr1.errors import ConfigurationError
from mmr1.report import build, main, print_table
from mmr1.report.result import interval
from mmr1.report.run_files import FILES
from mmr1.report.samples import MAX_ROWS
from mmr1.report.series import short, smooth, thin, ticks
from tests.unit.report.synthetic import completion, write_lines, write_run


class Page(HTMLParser):
    """The tags of a page, with attributes, and its text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def count(self, tag: str, css_class: str = "") -> int:
        return sum(name == tag and css_class in (attributes.get("class") or "").split(" ")
                   if css_class else name == tag for name, attributes in self.tags)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("whole"))
    build(run)
    return run


def of_line(accuracy: float) -> dict[str, dict[str, float | None]]:
    """The metrics of a line that has an accuracy alone, as runs of earlier versions have written it."""
    return {"accuracy": {"value": accuracy, "low": None, "high": None}}


def test_result_has_exactly_the_promised_keys_and_figures(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    versions = result.pop("versions")
    assert versions["python"] and versions["numpy"]
    assert result == {
        "task": "counting",
        "seed": 0,
        "steps": 60,
        "seconds": 336.0,  # 60 steps of 5 s, and four evaluations of 9 s
        "heldout": {
            "metric": "accuracy",
            "n": 640,
            "before": {"greedy": 0.525, "sampled": 0.405},
            "after": {"greedy": 0.772, "sampled": 0.667},
        },
        "tasks": {
            "counting": {
                "headline": "accuracy",
                "n": 640,
                "before": {"greedy": of_line(0.525), "sampled": of_line(0.405)},
                "after": {"greedy": of_line(0.772), "sampled": of_line(0.667)},
            },
        },
        "parity": {"max_abs_dlogp": 3.1e-6, "mean_abs_dlogp": 4.2e-7},
        "weight_updates": 60,
        "ledger": {"fed": 1924, "trained": 1916, "dropped": 7, "dead": 0, "pending": 1},
    }


def test_picture_is_a_readable_png(run: Path) -> None:
    with Image.open(run / "reward.png") as picture:
        assert picture.size == (1760, 720)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


def test_page_stands_alone(run: Path) -> None:
    page = Page(run / "report.html")
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "://" not in (run / "report.html").read_text()
    assert (run / "report.html").stat().st_size < 8_000_000


def test_page_shows_every_curve_and_samples_of_the_whole_run(run: Path) -> None:
    page = Page(run / "report.html")
    for title in (
        "Reward by component", "KL from the reference", "Entropy", "Temperature", "Policy lag", "Tokens per second",
        "Outcomes of scoring", "Seconds by phase",
    ):  # fmt: skip
        assert title in page.text
    assert 60 < page.count("div", "row") <= MAX_ROWS
    steps = {int(attributes["data-step"] or 0) for _, attributes in page.tags if "data-step" in attributes}
    assert min(steps) == 1 and max(steps) == 60 and len(steps) > 15
    assert page.count("img") == page.count("article")
    assert "picked for invalid_output" in page.text
    for shown in (
        "<answer>3</answer>",
        "How many digits are there?",
        "<|image_pad|>",
        "no number in the answer",
        "lag 1",
    ):
        assert shown in page.text


def test_model_output_is_only_ever_text(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=2)
    attack = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}"
    record = completion(1, attack, attack, 3, 3, False, 1.0)
    record |= {name: attack for name in ("problem", "prompt", "solution", "completion", "detail", "outcome", "task")}
    record |= {"components": {attack: 1.0}, "policy_version": attack, "finish_reason": attack}
    write_lines(run / "completions.jsonl", [record])
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for metric in metrics:
        metric["components"] = {attack: 1.0}
    write_lines(run / "metrics.jsonl", metrics)
    build(run)
    text, page = (run / "report.html").read_text(), Page(run / "report.html")
    assert page.count("script") == 2  # the readings, and the page's own
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "<script>alert" not in text
    assert attack in page.text


def test_own_script_is_the_only_one_allowed_to_run(run: Path) -> None:
    import base64
    import hashlib

    text = (run / "report.html").read_text()
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    fingerprint = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{fingerprint}&#39;" in text or f"script-src 'sha256-{fingerprint}'" in text


@pytest.mark.parametrize("name", FILES)
def test_any_file_may_be_missing(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path, num_steps=3)
    (run / name).unlink()
    build(run)
    assert f"{name} is missing" in Page(run / "report.html").text
    assert (run / "reward.png").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.97])
def test_any_file_may_be_cut_at_any_byte(tmp_path: Path, name: str, share: float) -> None:
    run = write_run(tmp_path, num_steps=3, groups_per_step=1)
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: int(share * len(content))])
    build(run)


def test_a_half_written_last_line_is_ignored_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=5)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[1] = '{"step": 2, "reward\n'
    (run / "metrics.jsonl").write_text("".join(lines[:4]) + lines[4][:40])
    assert build(run).steps == 3
    text = Page(run / "report.html").text
    assert "metrics.jsonl, line 2 is not JSON" in text and "line 5" not in text


def test_a_run_cut_before_its_first_step_reports_what_it_has(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=1)
    for name in ("metrics.jsonl", "completions.jsonl", "ledger.json"):
        (run / name).unlink()
    lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text("".join(lines[:2]))
    result = build(run)
    assert result.heldout.before == {"greedy": 0.525, "sampled": 0.405}
    assert result.heldout.after == {"greedy": None, "sampled": None}
    assert (result.steps, result.seconds, result.balanced) == (0, None, None)
    assert "No optimizer step has been taken" in Page(run / "report.html").text


def test_a_resumed_run_counts_a_repeated_step_once(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=4)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    again = records[3] | {"policy_version": "2.1", "time": records[3]["time"] + 100, "reward_mean": 0.25}
    write_lines(run / "metrics.jsonl", [*records, again])
    result = build(run)
    assert result.steps == 4
    assert result.weight_updates == 5
    assert result.seconds == 156.0


def test_the_learners_own_count_of_weight_updates_is_taken(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=4)
    (run / "weight_updates.json").write_text('{"count": 6}')
    assert build(run).weight_updates == 6


def test_values_that_are_no_numbers_are_gaps(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=4)
    records: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records[1] |= {"reward_mean": float("nan"), "kl_k3": None, "entropy": "high", "grad_norm": float("inf")}
    records[2] = {"step": 3}
    write_lines(run / "metrics.jsonl", records)
    build(run)
    assert not re.search(r'd="[^"]*(nan|inf)', (run / "report.html").read_text())


def test_images_that_cannot_be_shown_say_why(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=1)
    (tmp_path / "data" / "images" / "broken.png").write_bytes(b"not an image")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    paths = ("images/gone.png", "images/broken.png", "../secret.png")
    records = [completion(1, f"{n}/0", path, 1, 1, False, 1.0) for n, path in enumerate(paths)]
    write_lines(run / "completions.jsonl", records)
    build(run)
    page = Page(run / "report.html")
    assert page.count("img") == 0
    for reason in ("does not exist", "is not one of PNG", "lies outside the image root"):
        assert reason in page.text


def test_large_images_and_long_completions_keep_the_page_small(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=1)
    records = []
    for place in range(60):
        path = f"images/large{place}.jpg"
        Image.effect_noise((500, 900), 90).convert("RGB").save(tmp_path / "data" / path)
        records.append(
            completion(1 + place, "1/0", path, 1, 1, False, 1.0) | {"completion": f"{place} " + "x" * 50_000}
        )
    write_lines(run / "completions.jsonl", records)
    build(run)
    assert (run / "report.html").stat().st_size < 8_000_000
    assert "more characters)" in Page(run / "report.html").text


def test_versions_of_a_finished_run_are_kept_when_the_report_is_made_again(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=2)
    build(run)
    recorded = json.loads((run / "result.json").read_text()) | {"versions": {"torch": "1.0"}}
    (run / "result.json").write_text(json.dumps(recorded))
    assert build(run).versions == {"torch": "1.0"}


def test_folders_that_are_no_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        build(tmp_path / "nowhere")
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("mmr1: error: ")
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_command_prints_the_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out
    for shown in ("40.5 %", "66.7 %", "+26.2 points", "balances", "report.html"):
        assert shown in printed


def test_the_runs_own_file_names_its_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"model": "none", "train_file": "none.json", "num_steps": 1, "per_device_batch_size": 8}
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps({**given, "run_dir": str(run)}))  # JSON is YAML
    assert main(["--config", str(config)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out.splitlines()


def test_an_unbalanced_ledger_is_said_loudly(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=1)
    (run / "ledger.json").write_text(json.dumps({"fed": 9, "trained": 4, "dropped": {}, "dead": {}, "pending": 4}))
    console = Console(file=io.StringIO(), width=200)
    print_table(build(run), console)
    assert "DOES NOT BALANCE" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "does not balance" in Page(run / "report.html").text


def test_interval_contains_the_share_and_shrinks() -> None:
    low, high = interval(0.5, 100)
    assert low == pytest.approx(0.404, abs=1e-3) and high == pytest.approx(0.596, abs=1e-3)
    assert interval(0.0, 10)[0] == 0.0 and interval(1.0, 10)[1] == pytest.approx(1.0)


def test_axis_marks_are_round_and_enclose() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(3, 3)[0] <= 3 <= ticks(3, 3)[-1]
    for low, high in [(0.013, 0.7), (-3, 8), (1e-7, 5e-7), (0, 123456)]:
        marks = ticks(low, high)
        assert marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12 and 2 <= len(marks) <= 7
    assert [short(v) for v in (0, 0.25, 12345, 2.5e6, 1e-4, 3.14e-5)] == [
        "0",
        "0.25",
        "12.3k",
        "2.5M",
        "1e-4",
        "3.1e-5",
    ]


def test_long_runs_are_thinned_and_gaps_survive() -> None:
    steps, (line,) = thin(list(range(10_000)), [[1.0] * 9_000 + [None] * 1_000])
    assert len(steps) <= 400 and line[0] == 1.0 and line[-1] is None
    assert smooth([1.0, 1.0, 1.0]) == [1.0, 1.0, 1.0]
