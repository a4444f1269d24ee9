"""Which groups the gallery shows, how large it gets, and what strange records do to it: nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from mmr1.report import build
from mmr1.report.run_files import read_run
from mmr1.report.samples import MAX_ROWS, MAX_STEPS, choose
from tests.unit.report.mixed import write_mixed_run
from tests.unit.report.synthetic import Json, completion, write_lines, write_run


def told(step: int, prompt: str, **more: object) -> Json:
    record = completion(step, prompt, "images/00000.png", 3, 3, False, 1.2)
    return record | {"tokens": ["<answer>", "3"], "gaps": [0.5, 0.0]} | more


def test_groups_whose_tokens_are_on_record_come_first(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=3)
    silent = [completion(step, f"{n}/0", "images/00000.png", 3, n, False, 0.2) for step in (1, 2) for n in range(200)]
    write_lines(run / "completions.jsonl", [*silent[:300], told(1, "told/0"), told(2, "told/1"), *silent[300:]])
    shown = choose(read_run(run))
    assert sum(len(sample.rows) for sample in shown) == MAX_ROWS
    assert {sample.prompt_id for sample in shown if sample.rows[0].gaps} == {"told/0", "told/1"}


def test_of_a_long_run_the_steps_on_record_are_shown_evenly(tmp_path: Path) -> None:
    """Tokens of every fourth step alone are kept; the steps that are shown are among these."""
    run = write_run(tmp_path, num_steps=3)
    lines = []
    for step in range(1, 401):
        record = told(step, "1/0")
        lines.append(record if step % 4 == 1 else {k: v for k, v in record.items() if k not in ("tokens", "gaps")})
    write_lines(run / "completions.jsonl", lines)
    steps = [sample.step for sample in choose(read_run(run))]
    assert len(steps) == MAX_STEPS and all(step % 4 == 1 for step in steps)
    assert (steps[0], steps[-1]) == (1, 397)
    assert max(after - before for before, after in pairwise(steps)) <= 20


def test_equal_completions_are_one_row_with_the_tokens_that_one_of_them_has(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=1)
    silent = {k: v for k, v in told(1, "1/0").items() if k not in ("tokens", "gaps")}
    write_lines(run / "completions.jsonl", [silent, told(1, "1/0"), silent])
    ((row,),) = (sample.rows for sample in choose(read_run(run)))
    assert row.count == 3 and row.gaps is not None and row.gaps.largest == 0.5


def test_a_page_of_long_completions_with_a_gap_at_each_token_stays_small(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=1)
    tokens, gaps = [f"w{n} " for n in range(1024)], [(-1) ** n * 2.0 for n in range(1024)]
    lines = [
        told(1 + n, f"{n}/0", tokens=[f"{n}:", *tokens], gaps=[1.0, *gaps], completion=f"{n}:" + "".join(tokens))
        for n in range(200)
    ]
    write_lines(run / "completions.jsonl", lines)
    build(run)
    assert (run / "report.html").stat().st_size < 8_000_000


STRANGE: list[Json] = [
    {"image_sizes": [[0, 5]]},
    {"image_sizes": [[10**400, 5]]},
    {"image_sizes": "224x168"},
    {"image_sizes": [None]},
    {"tokens": [["a"], {"b": 1}, None], "gaps": [None, "x", 1e999]},
    {"tokens": {"a": 1}, "gaps": 3},
    {"parsed": [1, 2], "coordinates": [3]},
    {"parsed": {"detection": {"bbox_2d": {"x": 1}}}, "coordinates": {"detection": {"resized_size": [0, 0]}}},
    {"coordinates": {"detection": {"response_space": ["absolute"], "solution_space": {}}}},
    {"solution": "[" * 5000},
    {"solution": None, "images": [], "task": None},
    {"images": ["gone.png", "scene1.png"]},
]


@pytest.mark.parametrize("strange", STRANGE, ids=range(len(STRANGE)))
def test_strange_records_leave_a_page(strange: Json, tmp_path: Path) -> None:
    run = write_mixed_run(tmp_path, num_steps=1)
    lines = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    write_lines(run / "completions.jsonl", [line | strange for line in lines])
    build(run)
    text = (run / "report.html").read_text()
    assert text.count('<article class="card group"') == 4 and text.rstrip().endswith("</html>")
